"""Scores of texts: a first stage clears what is clearly benign, the encoder reads the rest.

The unit is the window, as for the encoder alone, or the single sentence: a text whose windows and
sentences are all clear is not encoded, of others only those that are not. What is disguised, or
cannot be read, has every window encoded: words that nobody sees cannot be clear.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from classifiers.embeddings.first_stage import FirstStages
from classifiers.embeddings.heads import EmbeddingScores, Floats
from classifiers.text.disguises.unreadable import is_unreadable
from classifiers.text.encoder.model import TextEncoder


class ReadText(NamedTuple):
    """A text and its readings. The first stage may clear it for `heads`, if for all of them; where
    there are none, it is encoded whatever it says."""

    text: str
    readings: Sequence[str]
    heads: tuple[int, ...] = ()


class TextScores(NamedTuple):
    """`scores [texts, heads]`, NaN for a text that is too long. `encoded [texts]`: the encoder has
    read all of the text; the scores of others are estimates for the heads that were asked for."""

    scores: Floats
    encoded: NDArray[np.bool_]


class Cascade:
    """An encoder, the heads on it, and their first stages; threads may share it."""

    def __init__(
        self, encoder: TextEncoder, heads: EmbeddingScores, first: FirstStages | None = None
    ) -> None:
        self._encoder, self.heads, self.first = encoder, heads, first
        if first is not None:
            of_encoder = encoder.words.vocabulary, encoder.words.width
            if first.width != of_encoder[1] or first.vocabulary < of_encoder[0]:
                raise ValueError(
                    f"first stages for {first.vocabulary} word vectors of width {first.width} do "
                    f"not fit the encoder's {of_encoder[0]} of width {of_encoder[1]}"
                )

    def scores(self, texts: Sequence[ReadText]) -> TextScores:
        """The scores of each text, the highest of its readings and of their windows."""
        counts = [len(text.readings) for text in texts]
        starts = np.cumsum([0, *counts])
        windows = self._encoder.windows(
            [reading for text in texts for reading in text.readings],
            sentences=self.heads.reads_sentences,
        )
        ends = np.searchsorted(windows.text, starts)  # of the windows of each text
        clear = np.zeros(len(windows.ids), bool)
        estimates = None
        if self.first is not None and any(text.heads for text in texts):
            static = self._encoder.words.means(windows.ids)
            estimates = self.first.estimates(static, windows.ids)
            for index, text in enumerate(texts):
                if text.heads and len(text.readings) == 1:
                    own = slice(ends[index], ends[index + 1])
                    is_clear = self.first.cleared(estimates[own], text.heads)
                    clear[own] = is_clear & (not is_clear.any() or not is_unreadable(text.text))
        embeddings = self._encoder.embed(
            [ids for ids, is_clear in zip(windows.ids, clear, strict=True) if not is_clear]
        )
        by_head = self.heads.scores(embeddings, windows.sentence[~clear])
        scores = np.empty((len(clear), by_head.shape[1]), np.float32)
        scores[~clear] = by_head
        if self.first is not None and estimates is not None:
            scores[clear] = self.first.scores(estimates[clear])
        highest = np.maximum.reduceat(windows.highest(scores), starts[:-1], axis=0)
        encoded = np.array([not clear[a:b].any() for a, b in zip(ends, ends[1:], strict=False)])
        return TextScores(highest, encoded)
