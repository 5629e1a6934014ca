"""`guard fit sparse-prompt`: features of a sparse autoencoder out of a prompt's states."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from guard.commands.fit.images.run import FitRun
from guard.commands.fit.sparse import (
    Active,
    Autoencoder,
    Erased,
    Features,
    Rate,
    Updates,
    autoencoder_of,
    training_of,
)
from guard.data.concept import Concept
from guard.reporting.progress import Stages

if TYPE_CHECKING:
    from guard.artifact import Artifact
    from guard.fitting.images.training_free import EncodedConcept
    from guard.fitting.prompts.rates import PromptRates
    from guard.models.images import ImageModel


def sparse_prompt(
    run: FitRun,
    autoencoder: Autoencoder = None,
    erased: Erased = 16,
    strength: Annotated[
        float, typer.Option(min=0.01, max=10, help="How often features are taken out; 1: once.")
    ] = 1.0,
    features: Features = None,
    active: Active = None,
    updates: Updates = None,
    rate: Rate = None,
) -> None:
    """Fit a guard of sparse features: those that tell a concept, taken out of the text encoder's
    states where a score of the prompt is high."""
    from guard.fitting.sparse.images import SparsePromptFit, fit_sparse_prompt

    training, given = training_of(features, active, updates, rate, run.seed)
    request = SparsePromptFit(
        autoencoder_of(autoencoder, run.out), erased, strength, training, given
    )

    def fit(
        image_model: ImageModel,
        concept: Concept,
        encoded: EncodedConcept | None,
        rates: PromptRates,
        progress: Stages,
    ) -> Artifact:
        assert encoded is not None
        return fit_sparse_prompt(image_model, concept, encoded, rates, request, progress)

    run.save(fit)
