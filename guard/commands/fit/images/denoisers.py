"""`guard fit spm|co-erasing|doco|ant|trce-stage2|all-but-one`: denoisers trained as low-rank
overlays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from guard.commands.fit.images.run import FitRun, GatedUnlessAsked
from guard.commands.fit.images.training import (
    Penalty,
    Project,
    Rank,
    Rate,
    Steps,
    Updates,
    image_settings,
    kept_beside,
    save_resumable,
    training_of,
)
from guard.commands.fit.options import Guidance
from guard.data.concept import Concept, read_concept
from guard.errors import DataError
from guard.fitting.images.trained.denoisers.kinds import KINDS, kinds_in
from guard.reporting.progress import Stages

if TYPE_CHECKING:
    from guard.artifact import Artifact
    from guard.fitting.images.trained.denoisers.fit import DenoiserEraser
    from guard.fitting.images.trained.denoisers.trajectories import TrajectorySettings
    from guard.fitting.images.training_free import EncodedConcept
    from guard.fitting.prompts.rates import PromptRates
    from guard.models.images import ImageModel

Layers = Annotated[
    str | None,
    typer.Option(
        help=f"Kinds of layers to train in place of the publication's, separated by commas, of: "
        f"{', '.join(KINDS)}."
    ),
]
Eta = Annotated[
    float, typer.Option(min=0, max=100, help="How far to lead away from the concept (η).")
]
Batch = Annotated[int, typer.Option(min=1, max=256, help="Latents in an update.")]
Refresh = Annotated[
    int, typer.Option(min=1, max=100_000, help="Updates after which new images are begun.")
]
Images = Annotated[int, typer.Option(min=1, max=1024, help="Images of the model's to train on.")]
Instead = Annotated[
    str | None,
    typer.Option(
        help="What is in a prompt's twin the concept's place, a thing that the model draws as "
        "itself; without it the first of the file's `instead`, or of its `replacements`."
    ),
]


@dataclass(frozen=True, kw_only=True)
class Effort:
    """The options of a training that are the same for all erasers here."""

    steps: Steps = 12
    guidance: Guidance = None
    layers: Layers = None
    updates: Updates = 300
    rate: Rate = 1e-3
    penalty: Penalty = 0.0

    def trajectories(self, count: int, refresh: int) -> TrajectorySettings:
        from guard.fitting.images.trained.denoisers.trajectories import TrajectorySettings

        return TrajectorySettings(count, self.steps, self.guidance, refresh)


def spm(
    run: GatedUnlessAsked,
    effort: Effort,
    surrogate: Annotated[str, typer.Option(help="What the concept becomes (c₀).")] = "",
    eta: Eta = 1.0,
    keep: Annotated[float, typer.Option(min=0, max=1e6, help="Weight of the anchors (λ).")] = 1000,
    anchors: Annotated[
        Literal["prompts", "random"],
        typer.Option(help="Prompts without the concept, or Gaussian states, as published."),
    ] = "prompts",
    transport: Annotated[
        bool | None,
        typer.Option(
            "--transport/--no-transport",
            help="Let the strength follow the score of the gate, as it does where there is one.",
        ),
    ] = None,
    batch: Batch = 4,
    images: Images = 8,
    refresh: Refresh = 20,
    rank: Rank = 1,
    project: Project = True,
) -> None:
    """Fit SPM: one-dimensional adapters that erase, anchored where they must not act."""
    from guard.fitting.images.trained.denoisers.spm import Spm

    if transport and run.ungated:
        raise DataError("--transport: follows the score of a gate: leave --ungated out")
    made = effort.trajectories(images, refresh)
    eraser = Spm(surrogate, eta, keep, anchors, batch, made)
    _save(
        run,
        effort,
        lambda _concept: eraser,
        rank,
        project,
        transport=transport is not False,
    )


def co_erasing(
    run: GatedUnlessAsked,
    effort: Effort,
    eta: Eta = 1.0,
    words: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the updates that erase words alone.")
    ] = 0.5,
    tokens: Annotated[
        int, typer.Option(min=1, max=64, help="States that stand for the concept's pictures.")
    ] = 4,
    token_updates: Annotated[
        int, typer.Option(min=1, max=10_000, help="Updates in which these are learned.")
    ] = 40,
    batch: Batch = 4,
    images: Images = 8,
    refresh: Refresh = 20,
    rank: Rank = 8,
) -> None:
    """Fit Co-Erasing: the concept's words, and then words beside pictures of it."""
    from guard.fitting.images.trained.denoisers.co_erasing import CoErasing
    from guard.fitting.images.trained.denoisers.picture_tokens import PictureSettings

    pictures = image_settings(2 * images, effort.steps, effort.guidance, run.seed)
    learned = PictureSettings(tokens, token_updates, batch=batch, images=pictures)
    eraser = CoErasing(eta, words, batch, learned, effort.trajectories(images, refresh))
    _save(run, effort, lambda _concept: eraser, rank)


def doco(
    run: GatedUnlessAsked,
    effort: Effort,
    instead: Instead = None,
    keep: Annotated[
        float, typer.Option(min=0, max=1e6, help="Weight of the anchor's own images.")
    ] = 1.0,
    warmup: Annotated[
        int, typer.Option(min=0, max=100_000, help="Updates of the discriminator before the first.")
    ] = 30,
    discriminator_rate: Annotated[
        float, typer.Option(min=1e-7, max=1.0, help="Adam's rate for the discriminator.")
    ] = 5e-4,
    batch: Batch = 4,
    images: Images = 16,
    rank: Rank = 8,
    project: Project = True,
) -> None:
    """Fit DoCo: images of the concept pass a discriminator as images of an anchor."""
    from guard.fitting.images.trained.denoisers.doco import DoCo

    pictures = image_settings(images, effort.steps, effort.guidance, run.seed)

    def eraser(concept: Concept) -> DenoiserEraser:
        return DoCo(_twin(concept, instead), keep, warmup, discriminator_rate, batch, pictures)

    _save(run, effort, eraser, rank, project)


def ant(
    run: GatedUnlessAsked,
    effort: Effort,
    eta: Eta = 1.0,
    early: Annotated[
        float, typer.Option(min=0, max=1e6, help="Weight of the early steps, which stay (α1).")
    ] = 1.0,
    unconditional: Annotated[
        float, typer.Option(min=0, max=1e6, help="Weight of the empty prompt, which stays (α2).")
    ] = 0.5,
    boundary: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1e6,
            help="The noise level (noise over signal) between early and late; 6.2 if left out.",
        ),
    ] = None,
    batch: Batch = 2,
    images: Images = 8,
    refresh: Refresh = 20,
    rank: Rank = 8,
    project: Project = True,
) -> None:
    """Fit ANT, trained: the concept reversed at middle and late steps, early ones as they are."""
    from guard.fitting.images.trained.denoisers.ant import Ant

    made = effort.trajectories(images, refresh)
    at = Ant.boundary if boundary is None else boundary
    eraser = Ant(eta, early, unconditional, at, batch, made)
    _save(run, effort, lambda _concept: eraser, rank, project)


def trce_stage2(
    run: GatedUnlessAsked,
    effort: Effort,
    instead: Instead = None,
    weight: Annotated[
        float, typer.Option(min=0, max=1000, help="How far both sides are guided apart.")
    ] = 15.0,
    margin: Annotated[
        float, typer.Option(min=0, max=1e6, help="By how much the twin's side is to be nearer.")
    ] = 0.01,
    keep: Annotated[
        float, typer.Option(min=0, max=1e6, help="Weight of the empty prompt, which stays.")
    ] = 100.0,
    batch: Batch = 4,
    images: Images = 16,
    rank: Rank = 8,
    project: Project = True,
) -> None:
    """Fit TRCE's second stage: early predictions pushed to the prompt's safe twin."""
    from guard.fitting.images.trained.denoisers.trce import TrceStage2

    made = effort.trajectories(images, 1)

    def eraser(concept: Concept) -> DenoiserEraser:
        twin = _twin(concept, instead)
        return TrceStage2(twin, weight, margin, keep, batch=batch, trajectories=made)

    _save(run, effort, eraser, rank, project)


def all_but_one(
    run: GatedUnlessAsked,
    effort: Effort,
    instead: Instead = None,
    keep: Annotated[
        float, typer.Option(min=0, max=1e6, help="Weight of the empty prompt, which stays (λ).")
    ] = 1.0,
    batch: Batch = 4,
    images: Images = 8,
    refresh: Refresh = 20,
    rank: Rank = 8,
    project: Project = True,
) -> None:
    """Fit All but One, trained: the concept's guidance becomes that of an alternative."""
    from guard.fitting.images.trained.denoisers.all_but_one import AllButOne

    made = effort.trajectories(images, refresh)

    def eraser(concept: Concept) -> DenoiserEraser:
        return AllButOne(_twin(concept, instead), keep, batch, made)

    _save(run, effort, eraser, rank, project)


def _twin(concept: Concept, instead: str | None) -> str:
    return next(text for text in (instead, *concept.instead, *concept.replacements) if text)


def _save(
    run: FitRun,
    effort: Effort,
    eraser: Callable[[Concept], DenoiserEraser],
    rank: int,
    project: bool = False,
    *,
    transport: bool = False,
) -> None:
    """Train, write the artifact and print its figures."""
    from guard.fitting.images.trained.denoisers.fit import fit_denoiser

    kinds = None if effort.layers is None else kinds_in(effort.layers)
    training = training_of(rank, effort.updates, effort.rate, run.seed, effort.penalty, project)
    chosen = eraser(read_concept(run.concept_file))

    def fit(
        image_model: ImageModel,
        concept: Concept,
        encoded: EncodedConcept | None,
        rates: PromptRates,
        progress: Stages,
    ) -> Artifact:
        return fit_denoiser(
            image_model,
            concept,
            encoded,
            rates,
            chosen,
            training,
            progress,
            kinds=kinds,
            keeping=kept_beside(run),
            transport=transport,
        )

    save_resumable(run, fit)
