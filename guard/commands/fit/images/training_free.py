"""`guard fit safree|nearest`: guards of embeddings, without training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from guard.commands.fit.images.run import Count, FitRun, Fpr, Seed
from guard.commands.fit.options import AsJson, ConceptFile, Device, Model, NearFpr, Out
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
    model: Model,
    concept_file: ConceptFile,
    out: Out,
    rank: Rank = 8,
    sense_rank: Annotated[
        int, typer.Option(min=1, max=64, help="Of these, how many the score uses.")
    ] = 1,
    alpha: Annotated[
        float,
        typer.Option(min=0, max=1, help="How far a token must exceed the others to be projected."),
    ] = 0.0,
    count: Count = 400,
    fpr: Fpr = 0.005,
    near_fpr: NearFpr = 0.03,
    seed: Seed = 0,
    device: Device = "auto",
    as_json: AsJson = False,
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

    run = FitRun(model, concept_file, out, count, fpr, near_fpr, seed, device, as_json)
    run.save(fit)


def nearest(
    model: Model,
    concept_file: ConceptFile,
    out: Out,
    rank: Rank = 8,
    anchors: Annotated[
        int, typer.Option(min=1, max=4096, help="Token states of safe prompts to keep.")
    ] = 512,
    count: Count = 400,
    fpr: Fpr = 0.005,
    near_fpr: NearFpr = 0.03,
    seed: Seed = 0,
    device: Device = "auto",
    as_json: AsJson = False,
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
            image_model, concept, encoded, rates, rank=rank, anchors=anchors, seed=seed
        )

    run = FitRun(model, concept_file, out, count, fpr, near_fpr, seed, device, as_json)
    run.save(fit)
