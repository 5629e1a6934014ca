"""`guard import` for models of images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from guard.commands.fit.images.run import FitRun
from guard.data.concept import Concept
from guard.reporting.progress import Stages

if TYPE_CHECKING:
    from guard.artifact import Artifact
    from guard.fitting.images.imported import ImportRequest
    from guard.fitting.images.training_free import EncodedConcept
    from guard.fitting.prompts.rates import PromptRates
    from guard.models.images import ImageModel


def import_images(run: FitRun, request: ImportRequest) -> Artifact:
    """Write the overlay of a pipeline. Raises DataError and ModelError."""
    from guard.fitting.images.imported import fit_import

    def fit(
        image_model: ImageModel,
        concept: Concept,
        encoded: EncodedConcept | None,
        rates: PromptRates,
        progress: Stages,
    ) -> Artifact:
        return fit_import(image_model, concept, encoded, rates, request, progress)

    return run.save(fit)
