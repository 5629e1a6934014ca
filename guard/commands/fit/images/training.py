"""What the fits that train an overlay have in common: options, and states that are kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from guard.commands.fit.images.run import Fit, FitRun

if TYPE_CHECKING:
    from guard.fitting.checkpoints import Checkpoints
    from guard.fitting.images.trained.fit import Keeping
    from guard.fitting.images.trained.noisy_images import ImageSettings
    from guard.fitting.overlays.training import Training

Rank = Annotated[int, typer.Option(min=1, max=256, help="Of each layer's factors.")]
Updates = Annotated[int, typer.Option(min=1, max=100_000, help="Updates of the factors.")]
Rate = Annotated[float, typer.Option(min=1e-7, max=1.0, help="Adam's rate for the factors.")]
Steps = Annotated[int, typer.Option(min=1, max=1000, help="Steps of the images to train on.")]
Penalty = Annotated[
    float,
    typer.Option(
        min=0,
        max=1e4,
        help="Weight of a group lasso over layers (GS-LoRA++): those that it drives to zero are "
        "not hooked.",
    ),
]
Project = Annotated[
    bool,
    typer.Option(
        "--project/--sum",
        help="Take the part of the erasing gradient out that would undo what is kept (DoCo), or "
        "sum both.",
    ),
]


def training_of(
    rank: int, updates: int, rate: float, seed: int, penalty: float = 0.0, project: bool = False
) -> Training:
    """The settings of the loop from options."""
    from guard.fitting.overlays.training import Training

    return Training(
        rank=rank, steps=updates, rate=rate, penalty=penalty, project=project, seed=seed
    )


def image_settings(count: int, steps: int, guidance: float | None, seed: int) -> ImageSettings:
    """The settings of the model's own images from options."""
    from guard.fitting.images.trained.noisy_images import ImageSettings

    return ImageSettings(count, steps, guidance, seed)


def kept_beside(run: FitRun) -> Keeping:
    """The states of a training, kept beside the artifact until that is there."""
    from guard.fitting.checkpoints import Checkpoints

    def keeping(of: str) -> Checkpoints:
        return Checkpoints(run.out, of)

    return keeping


def save_resumable(run: FitRun, fit: Fit) -> None:
    """Fit and save; the states that `kept_beside` has kept go when the artifact is there."""
    from guard.fitting.checkpoints import Checkpoints

    run.save(fit)
    Checkpoints(run.out).clear()
