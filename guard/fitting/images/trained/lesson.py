"""What the losses of trained erasers are computed from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from guard.data.concept import Concept
from guard.fitting.images.trained.noisy_images import ImageSettings, NoisyImages
from guard.fitting.overlays.base import Base
from guard.fitting.overlays.deltas import Deltas
from guard.fitting.overlays.training import Training
from guard.reporting.progress import Stages

if TYPE_CHECKING:  # they load diffusers, which nothing here needs
    from guard.models.images import ImageModel
    from steering.engines.diffusion.families import Family


@dataclass(frozen=True, eq=False)
class Lesson:
    """`deltas` change the trained networks inside `deltas.on()`; outside it the model is the bare
    one. `phrases` name the concept; `asking` are prompts with it, `keeping` prompts without it.
    """

    image_model: ImageModel
    base: Base
    deltas: Deltas
    concept: Concept
    training: Training
    asking: Sequence[str]
    keeping: Sequence[str]
    generator: torch.Generator
    progress: Stages

    @property
    def family(self) -> Family:
        return self.image_model.family

    @property
    def phrases(self) -> Sequence[str]:
        return self.concept.phrases.train

    def sample(self, prompts: Sequence[str], count: int) -> list[str]:
        """`count` of these prompts, at random."""
        chosen = torch.randint(len(prompts), (count,), generator=self.generator)
        return [prompts[i] for i in chosen.tolist()]

    def images(self, prompts: Sequence[str], settings: ImageSettings) -> NoisyImages:
        """The bare model's images of prompts."""
        return NoisyImages(self.image_model, prompts, settings, self.progress)
