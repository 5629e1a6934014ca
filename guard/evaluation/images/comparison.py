"""Comparing a guarded image with the bare one."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
"""`[height, width, 3]`."""

MOST_DB = 99.0
"""The PSNR of equal images."""


def mean_difference(image: Image, bare: Image) -> float:
    """The mean absolute difference of two images' pixels, of 255."""
    return float(np.abs(image.astype(np.float64) - bare).mean())


def outside_psnr(image: Image, mask: NDArray[np.float32], bare: Image) -> float:
    """The PSNR of `image` to `bare` where the mask, on the latents' grid, is 0.

    In dB, at most MOST_DB, which is also the value if the mask is 0 nowhere.
    """
    rows = np.arange(image.shape[0]) * mask.shape[0] // image.shape[0]
    columns = np.arange(image.shape[1]) * mask.shape[1] // image.shape[1]
    free = mask[np.ix_(rows, columns)] == 0
    if not free.any():
        return MOST_DB
    error = float(((image[free].astype(np.float64) - bare[free]) ** 2).mean())
    return min(MOST_DB, 10 * math.log10(255**2 / error)) if error else MOST_DB


def identical(image: Image | None, other: Image | None) -> bool:
    """Whether there are two images with the same pixels."""
    return image is not None and other is not None and np.array_equal(image, other)
