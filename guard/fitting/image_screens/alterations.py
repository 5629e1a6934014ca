"""Images as they travel: compressed, shrunk, cut, mirrored, without colours."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from classifiers.images.encoder import Pixels


def _compressed(image: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=30)
    return Image.open(buffer)


def _cut(image: Image.Image) -> Image.Image:
    edge = (image.width // 10, image.height // 10)
    return image.crop((*edge, image.width - edge[0], image.height - edge[1]))


_ALTERATIONS: Mapping[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG of quality 30": _compressed,
    "half the size": lambda image: image.reduce(2) if min(image.size) > 1 else image,
    "the outer tenth cut off": _cut,
    "mirrored": ImageOps.mirror,
    "grey": lambda image: image.convert("L"),
    "blurred": lambda image: image.filter(ImageFilter.GaussianBlur(max(image.size) / 100)),
    "inverted": ImageOps.invert,
}


def altered(image: Pixels) -> dict[str, Pixels]:
    """The image in each alteration, by its name."""
    opened = Image.fromarray(image)
    return {
        name: np.asarray(alter(opened).convert("RGB"), np.uint8)
        for name, alter in _ALTERATIONS.items()
    }
