"""An image processor as a differentiable function of pixels, for gradients on an image.

Behind its resizing, an image processor only scales each value and sets it in its place (`[3,
height, width]`, patches, copies in time). Both are found out from what it makes of chosen images,
so that no family of models has a second copy of its preprocessing here.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steering.engines.transformers.vision.base import VisionFamily

_PROBES = 5
"""Random images whose values together tell every value of an image from all others."""


class DifferentiablePixels:
    """The preprocessing of images that the processor resizes as it does `image`.

    `height` and `width` are the size behind the resizing. Raises ValueError where the processor
    mixes the pixels of an image of that size, or makes something of it that is no scaled pixel.
    """

    def __init__(self, family: VisionFamily, image: NDArray[np.uint8]) -> None:
        self._family = family
        self.height, self.width = _resized(family, image)
        shape = (self.height, self.width, 3)
        self._others = {
            name: value
            for name, value in family.prepare([np.zeros(shape, np.uint8)]).items()
            if name != "pixel_values"
        }
        self._low = self._values(np.zeros(shape, np.uint8))
        self._scale = (self._values(np.full(shape, 255, np.uint8)) - self._low) / 255
        self._moves = self._scale != 0
        """Values that depend on the image: others are padding."""
        self._place = self._places(shape)

    def own(self, images: Sequence[NDArray[np.uint8]]) -> Tensor:
        """`[images, height, width, 3]`, float32 in 0..255: the images as the processor has resized
        them. Raises ValueError for one that it resizes to another size."""
        found = torch.zeros(len(images), self.height * self.width * 3)
        for row, image in zip(found, images, strict=True):
            values = self._values(image)
            if values.shape != self._low.shape:
                raise ValueError("images of different shapes cannot be changed in one batch")
            row[self._place] = self._grey(values)
        return found.view(len(images), self.height, self.width, 3)

    def inputs(self, pixels: Tensor) -> dict[str, Tensor]:
        """What `prepare` makes of images with these pixels `[images, height, width, 3]`, float in
        0..255; differentiable."""
        placed = pixels.flatten(1)[:, self._place]
        values = self._low.flatten().repeat(len(pixels), 1)
        values[:, self._moves.flatten()] = (
            self._low[self._moves] + self._scale[self._moves] * placed
        )
        stacked = values.view(len(pixels), *self._low.shape).flatten(0, 1)
        others = {
            name: torch.cat([value] * len(pixels)) if value.ndim else value
            for name, value in self._others.items()
        }
        return {"pixel_values": stacked, **others}

    def _values(self, image: NDArray[np.uint8]) -> Tensor:
        return self._family.prepare([image])["pixel_values"].float()

    def _grey(self, values: Tensor) -> Tensor:
        """The grey levels 0..255 from which the processor has made `values`."""
        return (values - self._low)[self._moves] / self._scale[self._moves]

    def _places(self, shape: tuple[int, ...]) -> Tensor:
        """For each value that moves, the value of the flat image that it is made of."""
        draw = np.random.default_rng(0)
        probes = [draw.integers(0, 256, shape, np.uint8) for _ in range(_PROBES)]
        made = [self._grey(self._values(probe)).round().long().numpy() for probe in probes]
        factors = 256 ** np.arange(_PROBES)
        there = factors @ np.stack([probe.flatten().astype(np.int64) for probe in probes])
        wanted = factors @ np.stack(made)
        order = np.argsort(there)
        place = order[np.searchsorted(there[order], wanted).clip(max=len(order) - 1)]
        if len(np.unique(there)) != len(there) or not np.array_equal(there[place], wanted):
            raise ValueError(
                "the image processor mixes pixels of an image that it does not resize: gradients "
                "on its pixels are not supported"
            )
        return torch.from_numpy(place)


def _resized(family: VisionFamily, image: NDArray[np.uint8]) -> tuple[int, int]:
    """Height and width of an image behind the processor's resizing."""
    inputs = family.prepare([image])
    if "image_grid_thw" in inputs:
        side = int(family.image_processor.patch_size)
        _, rows, columns = inputs["image_grid_thw"][0].tolist()
        return rows * side, columns * side
    height, width = inputs["pixel_values"].shape[-2:]
    return int(height), int(width)
