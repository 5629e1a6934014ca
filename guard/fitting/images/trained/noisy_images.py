"""Noisy images of a model's own, on which erasers are trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from guard.errors import ModelError
from guard.evaluation.m_erasure.denoising import Noising, Views
from guard.reporting.progress import Stages

if TYPE_CHECKING:  # it loads diffusers, which nothing here needs
    from guard.models.images import ImageModel


@dataclass(frozen=True)
class ImageSettings:
    """Of the images that are generated: `count` for each set of prompts; `guidance` None is the
    pipeline's default."""

    count: int = 16
    steps: int = 8
    guidance: float | None = None
    seed: int = 0


class NoisyImages:
    """Finished images of some prompts, and noisy views of them at random timesteps.

    Raises ModelError for a scheduler that the engine does not support.
    """

    def __init__(
        self,
        image_model: ImageModel,
        prompts: Sequence[str],
        settings: ImageSettings,
        stages: Stages,
    ) -> None:
        try:
            self._noising = Noising(image_model.family)
        except ValueError as error:
            raise ModelError(f"model {image_model.name!r}: {error}") from error
        self._prompts = [prompts[i % len(prompts)] for i in range(settings.count)]
        guidance = settings.guidance
        self._latents = image_model.generate_latents(
            self._prompts,
            steps=settings.steps,
            guidance=image_model.family.defaults[1] if guidance is None else guidance,
            seed=settings.seed,
            advance=stages("generating images", settings.count),
        ).to(image_model.family.device)

    def views(self, rows: int, generator: torch.Generator) -> tuple[list[str], Views]:
        """Noisy views of `rows` images, with their prompts."""
        chosen = torch.randint(len(self._prompts), (rows,), generator=generator)
        views = self._noising.views(self._latents[chosen.to(self._latents.device)], generator)
        return [self._prompts[i] for i in chosen.tolist()], views
