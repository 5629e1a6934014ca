"""Text in images, read by RapidOCR: PP-OCR's detector and recogniser in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from classifiers.images.encoder import Pixels

_SURE = 0.5
"""The confidence from which on a line counts."""
_MOST_CHARS = 20_000
_LONGEST_SIDE = 960
"""Pixels of an image's longer side as the detector reads it."""
_MOST_CANDIDATES = 10_000
"""Shapes that the detector looks at: more than an image of that side has. Those beyond would be
left out, and specks could crowd out a text."""
_MOST_LINES, _MOST_WIDTH = 200, 2500
"""What is recognised of one image: its pieces of text, and their widths together in heights of a
line, of which each has `_LEAST_WIDTH`. A page has some 50 lines of 48."""
_LEAST_WIDTH = 320 / 48
_THIN = 16
"""The proportion of sides from which on the engine fails at an image."""
_LONGEST_THIN = 8192
"""Pixels of the longer side of a thin image, which others cannot have with as many pixels."""


class TooMuchText(ValueError):
    """An image has more text than is read; the message says so."""

    def __init__(self) -> None:
        super().__init__("it has more text than is read")


class TextInImages:
    """Reads the lines of text in an image. Raises ImportError where RapidOCR is not installed."""

    def __init__(self) -> None:
        import rapidocr

        params = {
            "Global.log_level": "critical",  # it logs paths, and each image without text
            "EngineConfig.onnxruntime.intra_op_num_threads": 1,
            # small images are not enlarged: that takes a second, and finds nothing more
            "Det.limit_type": "max",
            "Det.limit_side_len": _LONGEST_SIDE,
            "Det.max_candidates": _MOST_CANDIDATES,
        }
        make: Any = rapidocr.RapidOCR
        self._engine = make(params=params)
        # between detection, which is bounded, and recognition, which is not
        self._engine.crop_text_regions = _bounded(self._engine.crop_text_regions)

    def read(self, image: Pixels) -> str:
        """The lines of the image, from top to bottom. Raises TooMuchText."""
        found = self._engine(_padded(image)[..., ::-1])
        lines = zip(found.txts or (), found.scores or (), strict=True)
        text = "\n".join(text for text, score in lines if score >= _SURE)
        if len(text) > _MOST_CHARS:
            raise TooMuchText()
        return text


def _bounded(crop: Callable[..., Sequence[Pixels]]) -> Callable[..., Sequence[Pixels]]:
    def bounded(image: Pixels, boxes: Any) -> Sequence[Pixels]:
        if len(boxes) > _MOST_LINES:
            raise TooMuchText()
        crops = crop(image, boxes)
        if sum(max(_LEAST_WIDTH, line.shape[1] / line.shape[0]) for line in crops) > _MOST_WIDTH:
            raise TooMuchText()
        return crops

    return bounded


def _padded(image: Pixels) -> Pixels:
    """The image; a thin one with white at its end."""
    longest = max(image.shape[:2])
    if longest <= _THIN * min(image.shape[:2]):
        return image
    step = -(-longest // _LONGEST_THIN)
    image = image[::step, ::step]
    side = max(32, -(-max(image.shape[:2]) // _THIN))
    missing = [(0, max(0, side - length)) for length in image.shape[:2]]
    return np.pad(image, [*missing, (0, 0)], constant_values=255)
