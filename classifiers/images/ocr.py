"""Text in images, read by RapidOCR: PP-OCR's detector and recogniser in ONNX Runtime."""

from __future__ import annotations

from typing import Any

from classifiers.images.encoder import Pixels

_SURE = 0.5
"""The confidence from which on a line counts."""
_MOST_CHARS = 20_000
_LONGEST_SIDE = 960
"""Pixels of an image's longer side as the detector reads it."""


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
        }
        self._engine: Any = rapidocr.RapidOCR(params=params)

    def read(self, image: Pixels) -> str:
        """The lines of the image, from top to bottom."""
        found = self._engine(image[..., ::-1])
        lines = zip(found.txts or (), found.scores or (), strict=True)
        return "\n".join(text for text, score in lines if score >= _SURE)[:_MOST_CHARS]
