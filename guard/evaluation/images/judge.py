"""A judge: an ONNX file that recognises the concepts of an image, and its style.

Its input `pictures` is `[n, 3, side, side]` in 0..1; its outputs are `concepts`, a probability for
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
RECOGNISED = 0.5


@dataclass(frozen=True, slots=True)
class JudgeView:
    """A judge's view of one image: the concepts it recognises, the likeliest style."""

    concepts: tuple[str, ...]
    style: str

    def shows(self, label: str) -> bool:
        """Whether `label` is a recognised concept or the likeliest style."""
        return label in self.concepts or label == self.style


class Judge:
    """One judge. Raises DataError if the file is no judge."""

    def __init__(self, path: Path) -> None:
        from onnxruntime import (
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

    def views(self, images: Images) -> list[JudgeView]:
        """The view of each image. Raises DataError if the images' size is not the judge's."""
        if not len(images):
            return []
        shape = [3, *images.shape[1:3]]
        if any(
            isinstance(expected, int) and expected != size
            for expected, size in zip(self._shape, shape, strict=True)
        ):
            raise DataError(f"{self._path}: judges images of {self._shape}, these are {shape}")
        views: list[JudgeView] = []
        for start in range(0, len(images), BATCH):
            pixels = images[start : start + BATCH].astype(np.float32).transpose(0, 3, 1, 2) / 255
            concepts, styles = self._session.run(["concepts", "styles"], {"pictures": pixels})
            for recognised, style in zip(concepts > RECOGNISED, styles.argmax(1), strict=True):
                labels = tuple(self.concepts[i] for i in np.flatnonzero(recognised))
                views.append(JudgeView(labels, self.styles[style]))
        return views


@dataclass(frozen=True, slots=True)
class Judges:
    """The judge whose view counts, and the one it is compared with."""

    judge: Judge
    second: Judge | None = None

    @property
    def identity(self) -> tuple[str, ...]:
        """The digests of both."""
        return tuple(judge.digest for judge in (self.judge, self.second) if judge)

    def views(
        self, images: Sequence[NDArray[np.uint8]]
    ) -> list[tuple[JudgeView, JudgeView | None]]:
        """Both judges' views of each image `[height, width, 3]`."""
        if not images:
            return []
        stacked = np.stack(images)
        views = self.judge.views(stacked)
        second = self.second.views(stacked) if self.second else [None] * len(views)
        return list(zip(views, second, strict=True))


@dataclass(frozen=True, slots=True)
class Agreement:
    """Agreement of two judges: on the whole set of concepts, on single labels, on the style."""

    images: Share
    labels: Share
    style: Share

    @classmethod
    def of(cls, pairs: Sequence[tuple[JudgeView, JudgeView]], labels: int) -> Agreement:
        """From both views of each image; `labels` is the number of concepts."""
        differing = [len(set(view.concepts) ^ set(second.concepts)) for view, second in pairs]
        total = labels * len(pairs)
        return cls(
            Share.of([count == 0 for count in differing]),
            Share(total - sum(differing), total),
            Share.of([view.style == second.style for view, second in pairs]),
        )
