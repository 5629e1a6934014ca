"""The fit of erasers that train a denoiser."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from guard.artifact import Artifact
from guard.data.concept import Concept
from guard.fitting.images.trained.denoisers.kinds import Kind
from guard.fitting.images.trained.denoisers.layers import chosen, layers_of
from guard.fitting.images.trained.denoisers.lesson import DenoiserLesson
from guard.fitting.images.trained.fit import Eraser, Keeping, TrainedFit, fit_trained
from guard.fitting.images.trained.lesson import Lesson
from guard.fitting.images.training_free import EncodedConcept
from guard.fitting.overlays.training import Objective, Training
from guard.fitting.prompts.rates import PromptRates
from guard.reporting.progress import Stages

if TYPE_CHECKING:  # it loads diffusers, which nothing here needs
    from guard.models.images import ImageModel


class DenoiserEraser(Eraser, Protocol):
    """A published way to train a denoiser; `kinds` are the layers that it trains."""

    kinds: ClassVar[tuple[Kind, ...]]

    def objective(self, lesson: DenoiserLesson) -> Objective:
        """What is minimised."""


def fit_denoiser(
    image_model: ImageModel,
    concept: Concept,
    encoded: EncodedConcept | None,
    rates: PromptRates,
    eraser: DenoiserEraser,
    training: Training,
    progress: Stages,
    *,
    kinds: Sequence[Kind] | None = None,
    keeping: Keeping | None = None,
    transport: bool = False,
) -> Artifact:
    """A guard that overlays a denoiser; without `encoded` it has no gate. `kinds` of layers are
    trained in place of the eraser's own; with `transport` a gated guard's strength follows the
    prompt's score.

    Raises DataError for a denoiser without such layers, a training that fails, or held-out prompts
    that are too few for the rates, and ModelError for a pipeline that cannot be trained.
    """
    layers = chosen(layers_of(image_model.family), kinds or eraser.kinds)

    def objective(lesson: Lesson) -> Objective:
        fields: dict[str, Any] = vars(lesson)
        return eraser.objective(DenoiserLesson(**fields))

    fit = TrainedFit(eraser, training, layers, objective, keeping, transport)
    return fit_trained(image_model, concept, encoded, rates, fit, progress)
