"""Everyday alterations of an image, so that a gate learns who is in it and not the whole picture.

Images to forget and to retain get the same ones, as texts get the same wrappers
(`guard.fitting.steering.wordings`). Evaluation uses none of them: the transforms of
`guard.evaluation` are different.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

PART = (0.65, 0.95)
"""Bounds of the share of each side that is left of an image."""
ACROSS, DOWN = (0.45, 0.7), (0.55, 1.0)
"""Bounds of the shares of both sides that an image covers on another one."""


def altered(
    image: NDArray[np.uint8], others: Sequence[NDArray[np.uint8]], rng: random.Random
) -> NDArray[np.uint8]:
    """A part of `image`, enlarged, or all of it on one of `others`, squeezed: uint8 `[height,
    width, 3]` of the same size."""
    height, width = image.shape[:2]
    opened = Image.fromarray(image)
    if not others or rng.random() < 0.5:
        across, down = width * rng.uniform(*PART), height * rng.uniform(*PART)
        left, top = rng.uniform(0, width - across), rng.uniform(0, height - down)
        box = (left, top, left + across, top + down)
        return np.asarray(opened.resize((width, height), Image.Resampling.BICUBIC, box))
    canvas = Image.fromarray(rng.choice(others)).resize((width, height), Image.Resampling.BICUBIC)
    across = max(round(width * rng.uniform(*ACROSS)), 1)
    down = max(round(height * rng.uniform(*DOWN)), 1)
    place = rng.randint(0, width - across), rng.randint(0, height - down)
    canvas.paste(opened.resize((across, down), Image.Resampling.BICUBIC), place)
    return np.asarray(canvas)
