"""What the evaluation needs of an image generator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from guard.evaluation.images.row_tensors import RowTensors

Advance = Callable[[int], None]
"""Gets the number of images that were finished since the last call."""


@dataclass(frozen=True, slots=True)
class PromptEffect:
    """The effect of a policy on a prompt, before its image is generated or after.

    `same`: no guard acts on the prompt, so the image is the bare one, unless a guard that inspects
    the image itself fires. `late` identifies such guards and their actions, and is empty if there
    are none. `score`, `after` and `steps` are those of the guard with the largest score.
    """

    same: bool
    late: str = ""
    fired: bool = False
    blocked: bool = False
    steps: int = 0
    score: float | None = None
    after: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class GeneratedImage:
    """The outcome of a prompt: the policy's effect, and the image unless it was blocked."""

    effect: PromptEffect
    image: NDArray[np.uint8] | None
    mask: NDArray[np.float32] | None = None
    """Where guards have written, `[height, width]` in 0..1 on the latents' grid."""
    firing: tuple[str, ...] = ()
    """The names of the guards that fired."""


class ImageGenerator(Protocol):
    """Generates images for an evaluation. The policy None is the bare model."""

    def identity(self, policy: str | None) -> str:
        """A digest that changes whenever the images under a policy may change."""

    def inspect(
        self,
        prompts: Sequence[str],
        policies: Sequence[str | None],
        tensors: Sequence[RowTensors] = (),
    ) -> list[PromptEffect]:
        """The effect of each prompt's policy on the prompt and its tensors, if it has any."""

    def generate(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        policies: Sequence[str | None],
        advance: Advance,
        tensors: Sequence[RowTensors] = (),
    ) -> list[GeneratedImage]:
        """The outcome of each prompt. No prompt may be one that `inspect` says is blocked."""
