"""`guard fit safree|nearest`: guards of embeddings, without training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from guard.commands.fit.images.run import FitRun
from guard.data.concept import Concept
from guard.reporting.progress import Stages

if TYPE_CHECKING:
    from guard.artifact import Artifact
    from guard.fitting.images.training_free import EncodedConcept
    from guard.fitting.prompts.rates import PromptRates
    from guard.models.images import ImageModel

Rank = Annotated[int, typer.Option(min=1, max=64, help="Directions of the concept's subspace.")]
Phrase = Annotated[
    str | None,
    typer.Option(help="The phrase to guide away from, instead of the concept's first one."),
]


def safree(
    run: FitRun,
    rank: Rank = 8,
    sense_rank: Annotated[
        int, typer.Option(min=1, max=64, help="Of these, how many the score uses.")
    ] = 1,
    alpha: Annotated[
        float,
        typer.Option(min=0, max=1, help="How far a token must exceed the others to be projected."),
    ] = 0.0,
) -> None:
    """Fit a SAFREE guard: tokens that carry the concept are projected out of its subspace."""
    from guard.fitting.images.training_free import fit_safree

    def fit(
        image_model: ImageModel,
        concept: Concept,
        encoded: EncodedConcept | None,
        rates: PromptRates,
        _progress: Stages,
    ) -> Artifact:
        assert encoded is not None
        return fit_safree(
            image_model, concept, encoded, rates, rank=rank, sense_rank=sense_rank, alpha=alpha
        )

    run.save(fit)


def nearest(
    run: FitRun,
    rank: Rank = 8,
    anchors: Annotated[
        int, typer.Option(min=1, max=4096, help="Token states of safe prompts to keep.")
    ] = 512,
) -> None:
    """Fit a nearest-safe guard: tokens get the concept coordinates of their nearest safe one."""
    from guard.fitting.images.training_free import fit_nearest

    def fit(
        image_model: ImageModel,
        concept: Concept,
        encoded: EncodedConcept | None,
        rates: PromptRates,
        _progress: Stages,
    ) -> Artifact:
        assert encoded is not None
        return fit_nearest(
            image_model, concept, encoded, rates, rank=rank, anchors=anchors, seed=run.seed
        )

    run.save(fit)
