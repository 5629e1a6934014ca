"""`guard fit hirm|few-shot|advunlearn`: text encoders trained as low-rank overlays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from guard.commands.fit.images.run import FitRun, GatedUnlessAsked
from guard.commands.fit.images.training import (
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
from guard.reporting.progress import Stages

if TYPE_CHECKING:
    from guard.artifact import Artifact
    from guard.fitting.images.trained.text_encoders.fit import EncoderEraser
    from guard.fitting.images.training_free import EncodedConcept
    from guard.fitting.overlays.training import Training
    from guard.fitting.prompts.rates import PromptRates
    from guard.models.images import ImageModel

Keep = Annotated[
    float, typer.Option(min=0, max=1000, help="Weight of the prompts without the concept.")
]


def hirm(
    run: GatedUnlessAsked,
    variant: Annotated[
        Literal["R", "S"],
        typer.Option(help="Where the concept goes: a random direction, or a broader category."),
    ] = "S",
    category: Annotated[
        str | None,
        typer.Option(help="The category of S; without it the kind in the concept's name."),
    ] = None,
    size: Annotated[
        float,
        typer.Option(min=0.01, max=1e4, help="Of R's direction, in lengths of representations."),
    ] = 20.0,
    feed_forward: Annotated[
        bool, typer.Option("--feed-forward", help="Train the first block's feed-forward too.")
    ] = False,
    keep: Keep = 1.0,
    rank: Rank = 16,
    updates: Updates = 100,
    rate: Rate = 2e-3,
) -> None:
    """Fit HiRM: the first block of the text encoder misdirects the concept's representation."""
    from guard.fitting.images.trained.text_encoders.hirm import Hirm, category_of

    broader = category or category_of(read_concept(run.concept_file))
    eraser = Hirm(variant, broader, size, feed_forward, keep)
    _save(run, eraser, training_of(rank, updates, rate, run.seed))


def few_shot(
    run: GatedUnlessAsked,
    bound: Annotated[
        float,
        typer.Option(
            min=1.01, max=1000, help="How far the error may grow, in units of the bare model's."
        ),
    ] = 3.0,
    keep: Keep = 1.0,
    images: Annotated[int, typer.Option(min=1, max=4096, help="Images of the concept.")] = 4,
    steps: Steps = 8,
    guidance: Guidance = None,
    rank: Rank = 8,
    updates: Updates = 100,
    rate: Rate = 1e-3,
) -> None:
    """Fit few-shot unlearning: under the concept's prompts its images are denoised badly."""
    from guard.fitting.images.trained.text_encoders.few_shot import FewShot

    eraser = FewShot(bound, keep, images=image_settings(images, steps, guidance, run.seed))
    _save(run, eraser, training_of(rank, updates, rate, run.seed))


def advunlearn(
    run: GatedUnlessAsked,
    eta: Annotated[
        float, typer.Option(min=0, max=100, help="How far to lead away from the concept (η).")
    ] = 1.0,
    keep: Keep = 1.0,
    attack_steps: Annotated[
        int, typer.Option(min=1, max=1000, help="Steps of the attacker for each of its words.")
    ] = 30,
    attack_rate: Annotated[
        float, typer.Option(min=1e-5, max=10, help="Of the attacker, in sizes of embeddings.")
    ] = 0.1,
    every: Annotated[
        int, typer.Option(min=1, max=1000, help="Updates for each word of the attacker.")
    ] = 1,
    images: Annotated[
        int, typer.Option(min=1, max=4096, help="Images of the concept, and as many others.")
    ] = 32,
    steps: Steps = 8,
    guidance: Guidance = None,
    rank: Rank = 8,
    updates: Updates = 1000,
    rate: Rate = 1e-3,
) -> None:
    """Fit AdvUnlearn: the text encoder trained against an attacker who learns a word."""
    from guard.fitting.images.trained.text_encoders.advunlearn import AdvUnlearn

    eraser = AdvUnlearn(
        eta,
        keep,
        every=every,
        attack_steps=attack_steps,
        attack_rate=attack_rate,
        images=image_settings(images, steps, guidance, run.seed),
    )
    _save(run, eraser, training_of(rank, updates, rate, run.seed))


def _save(run: FitRun, eraser: EncoderEraser, training: Training) -> None:
    """Train, write the artifact and print its figures."""
    from guard.fitting.images.trained.text_encoders.fit import fit_text_encoder

    def fit(
        image_model: ImageModel,
        concept: Concept,
        encoded: EncodedConcept | None,
        rates: PromptRates,
        progress: Stages,
    ) -> Artifact:
        return fit_text_encoder(
            image_model, concept, encoded, rates, eraser, training, progress, kept_beside(run)
        )

    save_resumable(run, fit)
