"""Image files of responses, in the format that the client asks for."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image


@dataclass(frozen=True, slots=True)
class ImageFormat:
    """A file format; `name` is Pillow's, `lossy` formats have a quality."""

    name: str
    lossy: bool


FORMATS: Mapping[str, ImageFormat] = {
    "png": ImageFormat("PNG", lossy=False),
    "jpeg": ImageFormat("JPEG", lossy=True),
    "webp": ImageFormat("WEBP", lossy=True),
}
"""The formats by OpenAI's names."""

_BEST = 100
"""OpenAI's default quality of lossy formats."""


def encode_mask(mask: NDArray[np.uint8], *, width: int, height: int) -> bytes:
    """`mask` uint8 `[rows, columns]` as a grey PNG of `width` by `height` pixels, scaled to the
    nearest entry."""
    row = np.arange(height) * mask.shape[0] // height
    column = np.arange(width) * mask.shape[1] // width
    file = io.BytesIO()
    Image.fromarray(mask[row[:, None], column]).save(file, "PNG")
    return file.getvalue()


def encode_image(pixels: NDArray[np.uint8], form: ImageFormat, quality: int | None = None) -> bytes:
    """`pixels` uint8 `[height, width, 3]` as a file; `quality` 0 to 100, None is the best."""
    file = io.BytesIO()
    # Pillow reads a quality of 0 as its own default
    options = {"quality": max(1, _BEST if quality is None else quality)} if form.lossy else {}
    Image.fromarray(pixels).save(file, form.name, **options)
    return file.getvalue()
