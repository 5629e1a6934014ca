"""Images that a model says more of what is to go about: projected gradient on their pixels.

Projected gradient descent (Madry et al., arXiv 1706.06083, equation 1) in the maximum norm, towards
the recall answer, as Qi et al. (arXiv 2306.13213) have it for vision-language models and
MLLMEraser (arXiv 2510.04217) for its knowledge-recall inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from guard.errors import DataError
from guard.models.chat import ChatModel
from guard.reporting.progress import Stages
from steering.engines.transformers.vision.descent import Bounds, descended
from steering.engines.transformers.vision.pixels import DifferentiablePixels
from steering.engines.transformers.vision.recall import Recall
from steering.prompt import Prompt

BATCH = 8


@dataclass(frozen=True)
class Perturbation:
    """How far an image may be changed: by `epsilon` grey levels of 255 in each value, in `steps`
    of `step` grey levels."""

    epsilon: float = 8.0
    steps: int = 20
    step: float = 2.0

    def settings(self) -> dict[str, float]:
        """What the report says of it."""
        return {"epsilon": self.epsilon, "steps": self.steps, "step": self.step}


@dataclass(frozen=True)
class Perturbed:
    """An image as the model's processor resizes it, and the same perturbed, uint8 `[height, width,
    3]`; `before` and `after` are -log p of the recall answer, a token."""

    clean: NDArray[np.uint8]
    perturbed: NDArray[np.uint8]
    before: float
    after: float


def perturb(
    chat: ChatModel,
    prompts: Sequence[Prompt],
    answers: Sequence[Sequence[int]],
    how: Perturbation,
    *,
    seed: int,
    progress: Stages,
) -> list[Perturbed]:
    """The image of each of `prompts` (one each), perturbed towards the answer to it, token ids.

    The same seed gives the same images. Raises DataError where the engine has no gradients, or
    where the image processor does not let them through.
    """
    model, family = getattr(chat, "model", None), chat.vision
    if model is None or family is None:
        raise DataError(
            "the visual part of the direction needs gradients, which this engine does not give: "
            "ask for --engine transformers, or for --parts text"
        )
    found: dict[int, Perturbed] = {}
    advance = progress("perturbing images", len(prompts))
    order = sorted(range(len(prompts)), key=lambda i: (_shape(prompts[i]), len(prompts[i])))
    first = 0
    while first < len(order):
        shape = _shape(prompts[order[first]])
        batch = [i for i in order[first : first + BATCH] if _shape(prompts[i]) == shape]
        pixels = [_pixels(prompts[i]) for i in batch]
        try:
            preprocessing = DifferentiablePixels(family, pixels[0])
            clean = preprocessing.own(pixels).round()
        except ValueError as error:
            raise DataError(f"{error}: ask for --parts text") from error
        bounds = Bounds(how.epsilon, how.step, how.steps)
        asked, towards = [prompts[i] for i in batch], [answers[i] for i in batch]
        with Recall(model, preprocessing, asked, towards) as losses:
            changed = descended(clean, losses, bounds, seed + batch[0])
            with torch.no_grad():
                before, after = losses(clean), losses(changed)
        for row, i in enumerate(batch):
            images = (clean[row], changed[row])
            levels = [image.to(torch.uint8).numpy() for image in images]
            found[i] = Perturbed(levels[0], levels[1], float(before[row]), float(after[row]))
        advance(len(batch))
        first += len(batch)
    return [found[i] for i in range(len(prompts))]


def _pixels(prompt: Prompt) -> NDArray[np.uint8]:
    (item,) = prompt.media
    assert not isinstance(item.content, str)
    return item.content


def _shape(prompt: Prompt) -> tuple[int, ...]:
    return _pixels(prompt).shape
