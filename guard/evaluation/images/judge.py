"""A judge: an ONNX file that says which concepts an image shows, and in which style.

Its input `images` is `[n, 3, side, side]` in 0..1; its outputs are `concepts`, a probability for
each, and `styles`, a distribution. The labels are JSON arrays in the file's metadata.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard.errors import DataError
from guard.evaluation.shares import Share

Images = NDArray[np.uint8]
"""`[n, height, width, 3]`."""

BATCH = 64
FOUND = 0.5


@dataclass(frozen=True, slots=True)
class JudgeView:
    """What a judge sees in one image: the concepts it finds, the likeliest style."""

    concepts: tuple[str, ...]
    style: str

    def shows(self, label: str) -> bool:
        """Whether the concept of that label is found, or the style of that label is the top one."""
        return label in self.concepts or label == self.style


class Judge:
    """One judge. Raises DataError where the file is no judge."""

    def __init__(self, path: Path) -> None:
        from onnxruntime import (  # type: ignore[import-untyped]
            InferenceSession,
            SessionOptions,
        )

        try:
            content = path.read_bytes()
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from error
        self.digest = hashlib.sha256(content).hexdigest()
        self._path = path
        options = SessionOptions()
        options.log_severity_level = 3
        try:
            self._session: Any = InferenceSession(content, options, ["CPUExecutionProvider"])
            labels = self._session.get_modelmeta().custom_metadata_map
            self.concepts = tuple(map(str, json.loads(labels["concepts"])))
            self.styles = tuple(map(str, json.loads(labels["styles"])))
            self._shape = self._session.get_inputs()[0].shape[1:]
        except Exception as error:  # onnxruntime has no common base for its errors
            raise DataError(f"{path}: is no judge: {str(error).splitlines()[0]}") from error
        if overlap := set(self.concepts) & set(self.styles):
            raise DataError(f"{path}: {', '.join(sorted(overlap))} is a concept and a style")

    def knows(self, label: str) -> bool:
        """Whether `label` is one of its concepts or styles."""
        return label in self.concepts or label in self.styles

    def look(self, images: Images) -> list[JudgeView]:
        """What each image shows. Raises DataError where their size is not the judge's."""
        if not len(images):
            return []
        asked = [3, *images.shape[1:3]]
        if any(
            isinstance(own, int) and own != got for own, got in zip(self._shape, asked, strict=True)
        ):
            raise DataError(f"{self._path}: judges images of {self._shape}, these are {asked}")
        seen: list[JudgeView] = []
        for at in range(0, len(images), BATCH):
            pixels = images[at : at + BATCH].astype(np.float32).transpose(0, 3, 1, 2) / 255
            concepts, styles = self._session.run(["concepts", "styles"], {"pictures": pixels})
            for found, style in zip(concepts > FOUND, styles.argmax(1), strict=True):
                there = tuple(self.concepts[i] for i in np.flatnonzero(found))
                seen.append(JudgeView(there, self.styles[style]))
        return seen


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far two judges agree: on the whole set of concepts, on single labels, on the style."""

    images: Share
    labels: Share
    style: Share

    @classmethod
    def of(cls, pairs: Sequence[tuple[JudgeView, JudgeView]], labels: int) -> Agreement:
        """From what both saw in each image; `labels` is the number of concepts."""
        differing = [len(set(one.concepts) ^ set(other.concepts)) for one, other in pairs]
        total = labels * len(pairs)
        return cls(
            Share.of([count == 0 for count in differing]),
            Share(total - sum(differing), total),
            Share.of([one.style == other.style for one, other in pairs]),
        )
