"""Texts as a screen sees them: each in its readings, each reading in windows, all embedded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from classifiers.text.encoder.model import TextEncoder
from classifiers.text.heads import Floats, TextHead, TextHeads
from guard.reporting.progress import Stages

_AT_ONCE = 64

Readings = Callable[[str], list[str]]


@dataclass(frozen=True, slots=True, eq=False)
class TextWindows:
    """Windows of texts: `embeddings [windows, width]`, and whose each is, `text [windows]`.

    `first` marks the windows of a text's first reading, which is what training sees. `too_long`
    `[texts]` are those of which a reading was not encoded.
    """

    embeddings: Floats
    text: NDArray[np.intp]
    first: NDArray[np.bool_]
    too_long: NDArray[np.bool_]

    def logits(self, head: TextHead) -> Floats:
        """The highest logit of each text's windows, `[texts]`; NaN where not all was seen."""
        return self._highest(TextHeads([head]).logits(self.embeddings)[:, 0])

    def scores(self, head: TextHead) -> Floats:
        """The highest probability of each text's windows, `[texts]`; NaN where not all was seen."""
        return self._highest(TextHeads([head]).scores(self.embeddings)[:, 0])

    def windows_of(self, texts: NDArray[np.intp]) -> NDArray[np.intp]:
        """The windows to learn from, of some texts."""
        return np.flatnonzero(np.isin(self.text, texts) & self.first)

    def _highest(self, values: Floats) -> Floats:
        highest = np.full(len(self.too_long), -np.inf, np.float32)
        np.maximum.at(highest, self.text, values)
        highest[self.too_long] = np.nan
        return highest


def see(
    encoder: TextEncoder, texts: Sequence[str], readings: Readings, progress: Stages, what: str
) -> TextWindows:
    """Read and embed `texts`; tells `progress` of the stage `what`."""
    advance = progress(what, len(texts))
    embeddings, owners, first = [], [], []
    too_long = np.zeros(len(texts), bool)
    for start in range(0, len(texts), _AT_ONCE):
        some = texts[start : start + _AT_ONCE]
        read = [
            (start + at, i == 0, r) for at, t in enumerate(some) for i, r in enumerate(readings(t))
        ]
        encoded = encoder.encode([reading for _, _, reading in read])
        too_long[[read[at][0] for at in encoded.too_long]] = True
        embeddings.append(encoded.embeddings)
        owners += [read[at][0] for at in encoded.text]
        first += [read[at][1] for at in encoded.text]
        advance(len(some))
    return TextWindows(
        np.concatenate(embeddings), np.asarray(owners, np.intp), np.asarray(first, bool), too_long
    )
