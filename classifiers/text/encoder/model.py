"""Embeddings of texts in ONNX Runtime: on a GPU where its provider is installed, else on a CPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from classifiers.embeddings.encoders import PROVIDERS, open_session
from classifiers.text.encoder.card import GRAPH, TOKENIZER, EncoderCard
from classifiers.text.encoder.sentences import sentence_ranges
from classifiers.text.encoder.words import WordVectors

WINDOW = 128
"""Tokens of one window, with [CLS] and [SEP]."""

OVERLAP = 32
"""Tokens that a window shares with the one before, so that no phrase is cut in both."""

MOST_WINDOWS = 64
"""Of one text, about 6000 tokens."""

MOST_TOKENS = MOST_WINDOWS * (WINDOW - 2 - OVERLAP) + OVERLAP
"""Of one text, in that many windows."""

_BATCH_TOKENS = 4096
_ENDS = (("[CLS]", "[SEP]"), ("<s>", "</s>"))
"""What stands before and behind a row."""


@dataclass(frozen=True, slots=True, eq=False)
class Windows:
    """The windows of some texts: `ids` are the token ids of each, without [CLS] and [SEP].

    `text [windows]` has the index of the text of each window, in the order of texts and then of
    windows. `sentence [windows]` marks those that are a single sentence of the text or a piece of
    one, behind the windows that cover the text. `too_long` are the indices of texts with more than
    MOST_WINDOWS windows, which have none here.
    """

    ids: Sequence[Sequence[int]]
    text: NDArray[np.intp]
    sentence: NDArray[np.bool_]
    texts: int
    too_long: tuple[int, ...]

    def highest(self, scores: NDArray[np.float32]) -> NDArray[np.float32]:
        """Scores of the texts `[texts, heads]` from those of their windows `[windows, heads]`.

        The score of a text is the highest of its windows. A text that is too long was not read:
        its scores are NaN, which no caller may take for "did not fire".
        """
        highest = np.full((self.texts, scores.shape[1]), -np.inf, np.float32)
        np.maximum.at(highest, self.text, scores)
        highest[list(self.too_long)] = np.nan
        return highest


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """Embeddings of `windows`: `embeddings [windows, width]`, float32, length one."""

    embeddings: NDArray[np.float32]
    windows: Windows


class TextEncoder:
    """A sentence encoder from a folder that `guard models add` made; threads may share it."""

    def __init__(
        self, folder: Path, card: EncoderCard, threads: int, providers: Sequence[str] = PROVIDERS
    ) -> None:
        from tokenizers import Tokenizer

        self._graph = folder / GRAPH
        self._session = open_session(
            self._graph,
            threads,
            providers,
            # the fused kernel adds one number at a time: eight times slower than its parts
            disabled_optimizers=["SkipLayerNormFusion"],
        )
        self._padded = len(self._session.get_inputs()) > 1
        self._tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        for names in _ENDS:
            first, last = map(self._tokenizer.token_to_id, names)
            if first is not None and last is not None:
                break
        else:
            raise ValueError(
                f"{folder / TOKENIZER} is no tokenizer of a sentence encoder: it has neither "
                "[CLS] and [SEP] nor <s> and </s>"
            )
        prefix = self._tokenizer.encode(card.prefix, add_special_tokens=False).ids
        self._first, self._last = [first, *prefix], last
        self.card = card

    @classmethod
    def load(
        cls, folder: Path | str, *, threads: int = 1, providers: Sequence[str] = PROVIDERS
    ) -> TextEncoder:
        """The encoder of a folder. Raises ValueError where it is missing or was altered."""
        path = Path(folder)
        return cls(path, EncoderCard.read(path), threads, providers)

    @property
    def providers(self) -> Sequence[str]:
        """What it runs on, of PROVIDERS."""
        providers: Sequence[str] = self._session.get_providers()
        return providers

    @property
    def width(self) -> int:
        return self.card.width

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the weights, the vocabulary and the conversion."""
        return self.card.fingerprint

    @cached_property
    def words(self) -> WordVectors:
        """The table of word vectors that the graph begins with."""
        return WordVectors.read(self._graph)

    def encode(self, texts: Sequence[str], *, sentences: bool = False) -> Encoded:
        """Embeddings of all windows of `texts`, and of their sentences where these are asked for.

        The embeddings of a text do not depend on the other texts (up to 1e-4 where the graph takes
        several rows at once).
        """
        windows = self.windows(texts, sentences=sentences)
        return Encoded(self.embed(windows.ids), windows)

    def tokens(self, text: str) -> list[int]:
        """The token ids of a text, without those that stand around each window."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    @property
    def vocabulary(self) -> int:
        """The number of token ids."""
        return int(self._tokenizer.get_vocab_size())

    def windows(self, texts: Sequence[str], *, sentences: bool = False) -> Windows:
        """The windows of `texts`, of which an empty text has one, and their sentences."""
        # one by one: the tokenizer would encode a batch in as many threads as there are cores
        encodings = [self._tokenizer.encode(text, add_special_tokens=False) for text in texts]
        ids = [encoding.ids for encoding in encodings]
        if not sentences:
            return self.windows_of(ids)
        pairs = zip(texts, encodings, strict=True)
        return self.windows_of(ids, [sentence_ranges(text, each.offsets) for text, each in pairs])

    def windows_of(
        self, texts: Sequence[Sequence[int]], sentences: Sequence[Sequence[range]] | None = None
    ) -> Windows:
        """As `windows`, of token ids as `tokens` gives them, and the places of their sentences."""
        ids_of_windows: list[list[int]] = []
        owners: list[int] = []
        sentence: list[bool] = []
        too_long = []
        for index, ids in enumerate(texts):
            starts = window_starts(len(ids))
            if len(starts) > MOST_WINDOWS:
                too_long.append(index)
                continue
            ranges = [range(start, start + WINDOW - 2) for start in starts]
            apart = sentences[index] if sentences is not None else ()
            ids_of_windows += [[*ids[at.start : at.stop]] for at in (*ranges, *apart)]
            owners += [index] * (len(ranges) + len(apart))
            sentence += [False] * len(ranges) + [True] * len(apart)
        return Windows(
            ids_of_windows,
            np.asarray(owners, np.intp),
            np.asarray(sentence, np.bool_),
            len(texts),
            tuple(too_long),
        )

    def embed(self, windows: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Embeddings `[windows, width]` of windows' token ids; what is said twice is read once."""
        places: dict[tuple[int, ...], int] = {}
        at = [places.setdefault(tuple(ids), len(places)) for ids in windows]
        rows = [[*self._first, *ids, self._last] for ids in places]
        embeddings = np.empty((len(rows), self.width), np.float32)
        lengths = [len(row) for row in rows]
        for batch in batches(lengths) if self._padded else ([row] for row in range(len(rows))):
            embeddings[batch] = self._run([rows[row] for row in batch])
        return embeddings[at]

    def _run(self, rows: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        ids = np.zeros((len(rows), max(map(len, rows))), np.int32)
        mask = np.zeros_like(ids)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = row
            mask[index, : len(row)] = 1
        inputs = {"ids": ids, "mask": mask} if self._padded else {"ids": ids}
        (embeddings,) = self._session.run(None, inputs)
        result: NDArray[np.float32] = embeddings
        return result


def window_starts(tokens: int) -> range:
    """The first tokens of the windows of a text of `tokens` tokens; every token is in a window."""
    body = WINDOW - 2
    return range(0, max(tokens - OVERLAP, 1), body - OVERLAP)


def batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Indices of rows in batches of similar lengths, with little padding, of bounded size."""
    ordered = sorted(range(len(lengths)), key=lengths.__getitem__)
    batch: list[int] = []
    for row in ordered:
        longest = lengths[row]
        shortest = lengths[batch[0]] if batch else longest
        if batch and ((len(batch) + 1) * longest > _BATCH_TOKENS or longest > 1.25 * shortest + 8):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch
