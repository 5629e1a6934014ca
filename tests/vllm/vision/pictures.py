"""Pictures of random pixels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 28
"""Pixels on each side of what a tower sees."""


def pixels(seed: int, height: int = SIDE, width: int = SIDE) -> NDArray[np.uint8]:
    """Uint8 `[height, width, 3]`."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def picture(seed: int, height: int = SIDE, width: int = SIDE) -> Image.Image:
    """The same as an image of PIL."""
    return Image.fromarray(pixels(seed, height, width))
