"""Texts as a screen reads them: each in its readings, each reading in windows, all embedded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from classifiers.embeddings.heads import EmbeddingHead, EmbeddingHeads, Floats
from classifiers.text.encoder.model import TextEncoder
from guard.reporting.progress import Stages

_BATCH = 64

Readings = Callable[[str], list[str]]


@dataclass(frozen=True, slots=True, eq=False)
class TextWindows:
    """Windows of texts: `embeddings [windows, width]`, their static embeddings `static [windows,
    width]`, their token `ids` out of a `vocabulary` of so many, and the index of their text,
    `text [windows]`.

    `first` marks the windows of a text's first reading; training uses only these. `sentence` marks
    those that are a single sentence of their text. `too_long [texts]` marks texts with a reading
    that was not encoded.
    """

    embeddings: Floats
    static: Floats
    ids: Sequence[Sequence[int]]
    vocabulary: int
    text: NDArray[np.intp]
    first: NDArray[np.bool_]
    sentence: NDArray[np.bool_]
    too_long: NDArray[np.bool_]

    def logits(self, head: EmbeddingHead) -> Floats:
        """The highest logit of each text's windows, `[texts]`; NaN if the text is too long."""
        return self.highest(EmbeddingHeads([head]).logits(self.embeddings, self.sentence)[:, 0])

    def scores(self, head: EmbeddingHead) -> Floats:
        """The highest probability of each text's windows, `[texts]`; NaN if it is too long."""
        return self.highest(EmbeddingHeads([head]).scores(self.embeddings, self.sentence)[:, 0])

    @property
    def read_once(self) -> NDArray[np.bool_]:
        """Whether a text has one reading, which was encoded, `[texts]`."""
        once = ~self.too_long
        once[self.text[~self.first]] = False
        return once

    @property
    def by_itself(self) -> NDArray[np.bool_]:
        """The sentences that other text may stand beside, `[windows]`: those of a text of several,
        and a text that is one sentence."""
        several = np.zeros(len(self.too_long), np.bool_)
        several[self.text[self.sentence]] = True
        return self.sentence | ~several[self.text]

    @property
    def tokens(self) -> NDArray[np.intp]:
        """How many tokens the windows of a text have, `[texts]`: its length where it has one."""
        lengths = np.array([len(ids) for ids in self.ids], np.intp)
        whole = ~self.sentence
        return np.bincount(self.text[whole], lengths[whole], len(self.too_long)).astype(np.intp)

    def windows_of(self, texts: NDArray[np.intp]) -> NDArray[np.intp]:
        """The windows of some texts that training uses."""
        rows = self.rows_of(texts)
        return rows[~self.sentence[rows]]

    def rows_of(self, texts: NDArray[np.intp]) -> NDArray[np.intp]:
        """The windows and the sentences of some texts that training uses."""
        return np.flatnonzero(np.isin(self.text, texts) & self.first)

    def of_texts(self, texts: NDArray[np.intp]) -> TextWindows:
        """Some of the texts alone, by their indices in rising order."""
        place = np.full(len(self.too_long), -1, np.intp)
        place[texts] = np.arange(len(texts))
        kept = place[self.text] >= 0
        return TextWindows(
            self.embeddings[kept],
            self.static[kept],
            [self.ids[window] for window in np.flatnonzero(kept).tolist()],
            self.vocabulary,
            place[self.text[kept]],
            self.first[kept],
            self.sentence[kept],
            self.too_long[texts],
        )

    def highest(self, values: Floats) -> Floats:
        """The highest of each text's windows, `[texts]`; NaN if it is too long."""
        highest = np.full(len(self.too_long), -np.inf, np.float32)
        np.maximum.at(highest, self.text, values)
        highest[self.too_long] = np.nan
        return highest


def embed_windows(
    encoder: TextEncoder, texts: Sequence[str], readings: Readings, progress: Stages, stage: str
) -> TextWindows:
    """Embed the windows and the sentences of all readings of `texts`; `stage` names the stage for
    `progress`."""
    advance = progress(stage, len(texts))
    embeddings, static, owners, first, sentence = [], [], [], [], []
    ids: list[Sequence[int]] = []
    too_long = np.zeros(len(texts), bool)
    for start in range(0, len(texts), _BATCH):
        batch = texts[start : start + _BATCH]
        batch_readings = [
            (start + index, i == 0, reading)
            for index, text in enumerate(batch)
            for i, reading in enumerate(readings(text))
        ]
        encoded = encoder.encode([reading for _, _, reading in batch_readings], sentences=True)
        windows = encoded.windows
        too_long[[batch_readings[index][0] for index in windows.too_long]] = True
        embeddings.append(encoded.embeddings)
        sentence.append(windows.sentence)
        static.append(encoder.words.means(windows.ids))
        ids += windows.ids
        owners += [batch_readings[index][0] for index in windows.text]
        first += [batch_readings[index][1] for index in windows.text]
        advance(len(batch))
    return TextWindows(
        np.concatenate(embeddings),
        np.concatenate(static),
        ids,
        encoder.words.vocabulary,
        np.asarray(owners, np.intp),
        np.asarray(first, bool),
        np.concatenate(sentence),
        too_long,
    )
