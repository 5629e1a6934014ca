"""Embeddings of images in ONNX Runtime: on a GPU where its provider is installed, else on a CPU."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from classifiers.embeddings.encoders import PROVIDERS, open_session
from classifiers.images.card import GRAPH, ImageEncoderCard, Preparation

Pixels = NDArray[np.uint8]
"""An image, `[height, width, 3]`, red first."""

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_REDUCING_GAP = 3.0
"""Sides of an image in multiples of what they become, above which it is halved first: fast, and
hardly another image."""


class ImageEncoder:
    """An image encoder from a folder that `guard models add` made; threads may share it."""

    def __init__(
        self,
        folder: Path,
        card: ImageEncoderCard,
        threads: int,
        providers: Sequence[str] = PROVIDERS,
    ) -> None:
        self._session = open_session(folder / GRAPH, threads, providers)
        self._input = self._session.get_inputs()[0].name
        self.card = card

    @classmethod
    def load(
        cls, folder: Path | str, *, threads: int = 1, providers: Sequence[str] = PROVIDERS
    ) -> ImageEncoder:
        """The encoder of a folder. Raises ValueError where it is missing or was altered."""
        path = Path(folder)
        return cls(path, ImageEncoderCard.read(path), threads, providers)

    @property
    def width(self) -> int:
        return self.card.width

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the weights, the preparation and the conversion."""
        return self.card.fingerprint

    def encode(self, images: Sequence[Pixels]) -> NDArray[np.float32]:
        """Embeddings `[images, width]`, float32; an image's does not depend on the others."""
        embeddings = np.empty((len(images), self.width), np.float32)
        for row, image in enumerate(images):
            # one by one: a batch brings no speed on one core, and other rounding
            prepared = prepare(image, self.card.preparation)[None]
            embeddings[row] = self._session.run(None, {self._input: prepared})[0][0]
        return embeddings


def prepare(image: Pixels, how: Preparation) -> NDArray[np.float32]:
    """The image as the graph reads it, float32, `[crop, crop, 3]` or `[3, crop, crop]`."""
    side = (how.resize, how.resize)
    resized = Image.fromarray(image).resize(
        side, _FILTERS[how.filtering], reducing_gap=_REDUCING_GAP
    )
    if how.jpeg:
        buffer = io.BytesIO()
        resized.save(buffer, format="JPEG")
        resized = Image.open(buffer).convert("RGB")
    edge = (how.resize - how.crop) // 2
    pixels = np.asarray(resized, np.float32)[edge : edge + how.crop, edge : edge + how.crop]
    if how.channels == "BGR":
        pixels = pixels[..., ::-1]
    scaled = (pixels - np.asarray(how.mean, np.float32)) / np.float32(how.scale)
    if how.layout == "NCHW":
        scaled = scaled.transpose(2, 0, 1)
    return np.ascontiguousarray(scaled, np.float32)
