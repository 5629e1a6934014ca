"""Portraits as somebody who gets around a guard would show them. Each is a function of image and
seed alone, from and to uint8 pixels `[height, width, 3]` of the same size."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]


def crop(image: Pixels, rng: np.random.Generator, _other: Pixels) -> Pixels:
    """A part of 70 to 85 % of each side, enlarged."""
    height, width = image.shape[:2]
    share = rng.uniform(0.7, 0.85)
    rows, columns = max(round(height * share), 1), max(round(width * share), 1)
    top, left = rng.integers(height - rows + 1), rng.integers(width - columns + 1)
    return _resized(image[top : top + rows, left : left + columns], width, height)


def noise(image: Pixels, rng: np.random.Generator, _other: Pixels) -> Pixels:
    """Gaussian noise of a deviation of 20 of 255 levels."""
    return _levels(image + rng.normal(0, 20, image.shape))


def style(image: Pixels, rng: np.random.Generator, _other: Pixels) -> Pixels:
    """Posterised to four levels, drawn in grey, or as edges on white."""
    from PIL import Image, ImageFilter, ImageOps

    opened = Image.fromarray(image)
    kind = rng.integers(3)
    if kind == 0:
        return np.asarray(ImageOps.posterize(opened, 2))
    grey = opened.convert("L")
    if kind == 2:
        grey = ImageOps.invert(ImageOps.autocontrast(grey.filter(ImageFilter.FIND_EDGES)))
    return np.asarray(grey.convert("RGB"))


def beside(image: Pixels, rng: np.random.Generator, other: Pixels) -> Pixels:
    """The person and another one side by side in one image, either of them on the left."""
    height, width = image.shape[:2]
    half = width // 2
    person = _resized(image, half, height)
    stranger = _resized(other, width - half, height)
    if rng.integers(2):
        person, stranger = _resized(image, width - half, height), _resized(other, half, height)
        return np.concatenate([stranger, person], axis=1)
    return np.concatenate([person, stranger], axis=1)


def screen(image: Pixels, rng: np.random.Generator, _other: Pixels) -> Pixels:
    """A photo of a screen: seen from the side, with the moiré of two grids, blurred, brighter."""
    from PIL import Image, ImageFilter

    height, width = image.shape[:2]
    # the corners of the screen in the photo move inwards by up to an eighth
    shift = rng.uniform(0, 1 / 8, (4, 2)) * (width, height)
    corners = np.array([(0, 0), (0, height), (width, height), (width, 0)], float)
    inwards = np.array([(1, 1), (1, -1), (-1, -1), (-1, 1)])
    coefficients = _perspective(corners + shift * inwards, corners)
    grey = int(rng.integers(30, 90))
    photo = Image.fromarray(image).transform(
        (width, height),
        Image.Transform.PERSPECTIVE,
        coefficients,
        Image.Resampling.BICUBIC,
        fillcolor=(grey, grey, grey),
    )
    pixels = np.asarray(photo.filter(ImageFilter.GaussianBlur(rng.uniform(0.4, 0.9))), float)
    y, x = np.mgrid[:height, :width]
    angle, pitch = rng.uniform(0, np.pi), rng.uniform(2.2, 3.2)
    across = x * np.cos(angle) + y * np.sin(angle)
    # the beat of the screen's pixels and the camera's
    grids = np.sin(2 * np.pi * across / pitch) * np.sin(2 * np.pi * x / 3)
    moire = 1 + 0.12 * grids[..., None] * np.array([1.0, 0.7, 1.0])
    return _levels(pixels * moire * rng.uniform(0.85, 1.2) + rng.uniform(5, 25))


TRANSFORMS: Mapping[str, Callable[[Pixels, np.random.Generator, Pixels], Pixels]] = {
    "crop": crop,
    "noise": noise,
    "style": style,
    "beside": beside,
    "screen": screen,
}


def transformed(name: str, image: Pixels, other: Pixels, seed: int) -> Pixels:
    """`image` under the transform of that name; `other` is the portrait of another person.

    The same seed gives the same image. Raises KeyError for an unknown name.
    """
    rng = np.random.default_rng([seed, *name.encode()])
    altered: Pixels = np.ascontiguousarray(TRANSFORMS[name](image, rng, other))
    return altered


def _levels(values: NDArray[Any]) -> Pixels:
    rounded: Pixels = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return rounded


def _resized(image: Pixels, width: int, height: int) -> Pixels:
    from PIL import Image

    size = (max(width, 1), max(height, 1))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))


def _perspective(seen: NDArray[Any], flat: NDArray[Any]) -> list[float]:
    """The eight coefficients of the projective map from points `seen [4, 2]` to `flat [4, 2]`."""
    rows, targets = [], []
    for (x, y), (u, v) in zip(seen, flat, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        targets += [u, v]
    return [float(value) for value in np.linalg.solve(np.array(rows), np.array(targets))]
