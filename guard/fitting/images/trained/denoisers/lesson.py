"""What the losses of a denoiser's erasers are computed from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from guard.evaluation.m_erasure.denoising import bare
from guard.fitting.images.trained.lesson import Lesson
from steering.images.conditioning import Conditioning, concatenated

Texts = Sequence[str] | Conditioning
"""A prompt or a conditioning for each row."""


class Noisy(Protocol):
    """Noisy latents as the network is given them: `inputs [rows, ...]`, `timesteps [rows]`."""

    @property
    def inputs(self) -> Tensor: ...

    @property
    def timesteps(self) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class DenoiserLesson(Lesson):
    """The deltas change the denoiser. Predictions are `[rows, ...]`, float32, without guidance."""

    def bare(self, at: Noisy, *texts: Texts) -> list[Tensor]:
        """What the bare denoiser predicts for the same latents under each of `texts`."""
        with torch.no_grad():
            return self._predicted(at, texts)

    def edited(self, at: Noisy, *texts: Texts) -> list[Tensor]:
        """What the changed one predicts, differentiable."""
        with self.deltas.on():
            return self._predicted(at, texts)

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """The conditionings of prompts."""
        with torch.no_grad():
            return self.family.encode(prompts)

    def _predicted(self, at: Noisy, texts: Sequence[Texts]) -> list[Tensor]:
        rows = len(at.timesteps)
        parts = [t if isinstance(t, Conditioning) else self.encode(t) for t in texts]
        inputs, timesteps = (
            torch.cat([tensor] * len(parts)) for tensor in (at.inputs, at.timesteps)
        )
        output = bare(self.family)(inputs, timesteps, concatenated(parts))
        return [output[first : first + rows] for first in range(0, len(output), rows)]


def nothing(rows: int) -> list[str]:
    """The empty prompt for each row."""
    return [""] * rows
