"""The fit of erasers that train a text encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from guard.artifact import Artifact
from guard.data.concept import Concept
from guard.fitting.images.trained.fit import Eraser, Keeping, TrainedFit, fit_trained
from guard.fitting.images.trained.lesson import Lesson
from guard.fitting.images.trained.text_encoders.blocks import Block, blocks_of
from guard.fitting.images.training_free import EncodedConcept
from guard.fitting.overlays.training import Objective, Training
from guard.fitting.prompts.rates import PromptRates
from guard.reporting.progress import Stages
from steering.images.conditioning import Conditioning

if TYPE_CHECKING:  # it loads diffusers, which nothing here needs
    from guard.models.images import ImageModel


@dataclass(frozen=True, eq=False)
class EncoderLesson(Lesson):
    """With the `blocks` of each encoder; the deltas change the encoders."""

    blocks: Mapping[str, Sequence[Block]]

    def edited(self, prompts: Sequence[str], **arguments: Any) -> Conditioning:
        """The conditionings of prompts by the changed encoders, differentiable."""
        with self.deltas.on():
            return self.family.encode(prompts, **arguments)

    def bare(self, prompts: Sequence[str]) -> Conditioning:
        """Those by the encoders as they are."""
        with torch.no_grad():
            return self.family.encode(prompts)

    def moved(self, prompts: Sequence[str]) -> Tensor:
        """How far the states of prompts move, in units of how far they lie apart: a scalar."""
        before, after = self.bare(prompts), self.edited(prompts)
        parts = []
        for stream, states in before.states.items():
            real = before.masks[stream]
            change = (after.states[stream] - states)[real].float()
            spread = states[real].float()
            parts.append(change.square().sum() / (spread - spread.mean(0)).square().sum())
        return torch.stack(parts).mean()


class EncoderEraser(Eraser, Protocol):
    """A published way to train a text encoder."""

    def layers(self, blocks: Mapping[str, Sequence[Block]]) -> list[str]:
        """The layers that are trained."""

    def objective(self, lesson: EncoderLesson) -> Objective:
        """What is minimised."""


def fit_text_encoder(
    image_model: ImageModel,
    concept: Concept,
    encoded: EncodedConcept | None,
    rates: PromptRates,
    eraser: EncoderEraser,
    training: Training,
    progress: Stages,
    keeping: Keeping | None = None,
) -> Artifact:
    """A guard that overlays the text encoders of a pipeline; without `encoded` it has no gate.

    Raises ModelError for encoders that cannot be trained, and DataError for a training that fails
    or held-out prompts that are too few for the rates.
    """
    blocks = blocks_of(image_model.family.encoders)

    def objective(lesson: Lesson) -> Objective:
        return eraser.objective(EncoderLesson(**vars(lesson), blocks=blocks))

    fit = TrainedFit(eraser, training, eraser.layers(blocks), objective, keeping)
    return fit_trained(image_model, concept, encoded, rates, fit, progress)
