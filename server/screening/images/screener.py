"""Scores of images, and the text in them: one image after another in a thread, callers by turns."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from classifiers.images.ocr import TooMuchText
from guard.data.image_files import PixelBudget, UnusableImage, decode_readings
from guard.plans.image_screens import ImageClassifiers
from server.errors import InvalidParameter
from server.screening.bodies.images import JsonImage
from server.screening.texts.turns import Caller, FairWorker
from server.screening.texts.verdict_cache import VerdictCache, file_key
from server.wire.schemas.conversation import ImageUpload
from server.wire.uploads import MAX_IMAGE_BYTES, file_of

logger = logging.getLogger(__name__)

CACHE_ENTRIES, TEXT_ENTRIES = 4096, 1024
_MOST_AT_ONCE = 4
_IMAGE_COST = 100_000
"""The cost of an image beside its bytes."""
_OCR_COST = 10 * _IMAGE_COST
"""What reading the text in an image costs beside that: a quarter of a second to a second."""
_LIMIT = 8 * MAX_IMAGE_BYTES
"""The cost of the images of one caller that wait."""


@dataclass(frozen=True, slots=True)
class ImageReading:
    """The scores of one image, `[heads]` by encoder, and the text in it; `fault` says why something
    of that could not be read."""

    scores: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    text: str = ""
    fault: str | None = None


class WantedImage(NamedTuple):
    """An image, the encoders that read it, and whether the text in it is read."""

    image: JsonImage
    encoders: frozenset[str]
    ocr: bool


class _Item(NamedTuple):
    wanted: WantedImage
    budget: PixelBudget
    tenant: str


class ImageScreener:
    """Reads images. To be made and used in one event loop.

    What was read for one tenant is not known to another.
    """

    def __init__(self, classifiers: ImageClassifiers) -> None:
        self._classifiers = classifiers
        self._scores: VerdictCache[NDArray[np.float32]] = VerdictCache(CACHE_ENTRIES)
        self._texts: VerdictCache[str] = VerdictCache(TEXT_ENTRIES)
        self._worker = FairWorker(
            self._read_all,
            "images",
            most_items=_MOST_AT_ONCE,
            most_cost=_MOST_AT_ONCE * _IMAGE_COST,
            limit=_LIMIT,
        )

    async def read(self, images: Sequence[WantedImage], caller: Caller) -> list[ImageReading]:
        """The readings of the images of one body. Raises TooManyRequests where too much of this
        caller waits."""
        budget = PixelBudget()
        items = [_Item(wanted, budget, caller.tenant) for wanted in images]
        costs = [
            _IMAGE_COST + len(wanted.image.value or "") + wanted.ocr * _OCR_COST
            for wanted in images
        ]
        return await self._worker.run(caller.turn, items, costs)

    def close(self) -> None:
        """Stop, and cancel what is pending."""
        self._worker.close()

    def _read_all(self, items: Sequence[_Item]) -> list[ImageReading]:
        """Runs in the worker's thread."""
        return [self._read(*item) for item in items]

    def _read(self, wanted: WantedImage, budget: PixelBudget, tenant: str) -> ImageReading:
        path = wanted.image.path
        scores: dict[str, NDArray[np.float32]] = {}
        try:
            text = self._read_file(_file(wanted.image), wanted, budget, tenant, scores)
            return ImageReading(scores, text)
        except InvalidParameter as error:
            fault = error.message
        except (UnusableImage, TooMuchText) as error:
            fault = f"The image in '{path}' cannot be read: {error}."
        except Exception:
            # other callers' images are read with this one, and the reason may name files
            logger.exception("reading an image failed")
            fault = f"The image in '{path}': reading it failed: the log has the reason."
        return ImageReading(scores, fault=fault)

    def _read_file(
        self,
        file: bytes,
        wanted: WantedImage,
        budget: PixelBudget,
        tenant: str,
        scores: dict[str, NDArray[np.float32]],
    ) -> str:
        """Put the scores of a file into `scores`, where they stay if its text cannot be read, and
        return the text."""
        key, ocr = file_key(file), self._classifiers.ocr if wanted.ocr else None
        for name in wanted.encoders:
            row = self._scores.get(tenant, key + name.encode())
            if row is not None:
                scores[name] = row
        text = "" if ocr is None else self._texts.get(tenant, key)
        missing = wanted.encoders - scores.keys()
        if text is not None and not missing:
            return text
        readings = decode_readings(file, budget)
        for name in missing:
            # of what different decoders show the highest score counts
            row = self._classifiers.by_encoder[name].scores(readings).max(axis=0)
            if not np.isfinite(row).all():
                raise ValueError(f"the image encoder {name} gave a score that is no number")
            self._scores.put(tenant, key + name.encode(), row)
            scores[name] = row
        if ocr is not None and text is None:
            text = "\n".join(map(ocr.read, readings))
            self._texts.put(tenant, key, text)
        return text or ""


def _file(image: JsonImage) -> bytes:
    """The file of an image. Raises UnusableImage and InvalidParameter."""
    value = image.value
    if value is None:
        raise UnusableImage("it is given by reference, and nothing is fetched here")
    if isinstance(value, bytes):
        return value
    start = value[:40].lstrip().lower()
    if "://" in start:
        raise UnusableImage("it is at an address, and nothing is fetched here: send base64")
    if start.startswith("data:"):
        return file_of(ImageUpload.of_url(value, image.path))
    return file_of(ImageUpload(value, "", image.path))
