"""Texts to embeddings, in ONNX Runtime: on a GPU where its provider is there, else on the CPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from classifiers.text.encoder.card import GRAPH, TOKENIZER, EncoderCard

WINDOW = 128
"""Tokens of one window, its two marks included."""

OVERLAP = 32
"""Tokens that a window shares with the one before, so that nothing is cut in two in both."""

MOST_WINDOWS = 64
"""Of one text: some 6000 tokens."""

_PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")
_BATCH_TOKENS = 4096


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """Embeddings of the windows of some texts: `embeddings [windows, width]`, float32, length one.

    `text [windows]` says whose each is, in the order of texts and then of windows. `too_long` are
    the texts that have more than MOST_WINDOWS: no window of theirs was encoded.
    """

    embeddings: NDArray[np.float32]
    text: NDArray[np.intp]
    texts: int
    too_long: tuple[int, ...]

    def highest(self, scores: NDArray[np.float32]) -> NDArray[np.float32]:
        """Scores of the texts `[texts, heads]` from those of their windows `[windows, heads]`.

        The highest of a text's windows counts. A text that is too long was not seen: its scores
        are NaN, which no caller may read as "did not fire".
        """
        highest = np.full((self.texts, scores.shape[1]), -np.inf, np.float32)
        np.maximum.at(highest, self.text, scores)
        highest[list(self.too_long)] = np.nan
        return highest


class TextEncoder:
    """A sentence encoder from a folder that `guard models add` has made; safe to share."""

    def __init__(self, folder: Path, card: EncoderCard, threads: int) -> None:
        import onnxruntime  # type: ignore[import-untyped]
        from tokenizers import Tokenizer

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        # a waiting thread would take from the engine beside it
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        there = onnxruntime.get_available_providers()
        self._session = onnxruntime.InferenceSession(
            str(folder / GRAPH),
            options,
            providers=[provider for provider in _PROVIDERS if provider in there],
            # the fused kernel adds up one number at a time: eight times slower than its parts
            disabled_optimizers=["SkipLayerNormFusion"],
        )
        self._padded = len(self._session.get_inputs()) > 1
        self._tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        first, last = map(self._tokenizer.token_to_id, ("[CLS]", "[SEP]"))
        if first is None or last is None:
            raise ValueError(f"{folder / TOKENIZER} is no BERT tokenizer: it has no [CLS] or [SEP]")
        self._first, self._last = first, last
        self.card = card

    @classmethod
    def load(cls, folder: Path | str, *, threads: int = 1) -> TextEncoder:
        """Raises ValueError where the folder holds no text encoder, or one that was altered."""
        path = Path(folder)
        return cls(path, EncoderCard.read(path), threads)

    @property
    def width(self) -> int:
        return self.card.width

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the weights, the vocabulary and how they are run."""
        return self.card.fingerprint

    def encode(self, texts: Sequence[str]) -> Encoded:
        """Embeddings of all windows of `texts`; an empty text has one window.

        What stands beside a text changes nothing in its embeddings (up to 1e-4 where the graph
        takes several rows at once).
        """
        windows: list[list[int]] = []
        text: list[int] = []
        too_long = []
        for at, own in enumerate(texts):
            # one by one: a batch would take threads of its own, as many as there are cores
            ids = self._tokenizer.encode(own, add_special_tokens=False).ids
            starts = window_starts(len(ids))
            if len(starts) > MOST_WINDOWS:
                too_long.append(at)
                continue
            windows += [
                [self._first, *ids[start : start + WINDOW - 2], self._last] for start in starts
            ]
            text += [at] * len(starts)
        embeddings = np.empty((len(windows), self.width), np.float32)
        lengths = [len(window) for window in windows]
        for rows in batches(lengths) if self._padded else ([row] for row in range(len(windows))):
            embeddings[rows] = self._run([windows[row] for row in rows])
        return Encoded(embeddings, np.asarray(text, np.intp), len(texts), tuple(too_long))

    def _run(self, rows: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        ids = np.zeros((len(rows), max(map(len, rows))), np.int32)
        mask = np.zeros_like(ids)
        for at, row in enumerate(rows):
            ids[at, : len(row)] = row
            mask[at, : len(row)] = 1
        given = {"ids": ids, "mask": mask} if self._padded else {"ids": ids}
        (embeddings,) = self._session.run(None, given)
        result: NDArray[np.float32] = embeddings
        return result


def window_starts(tokens: int) -> range:
    """Where the windows of a text of so many tokens begin; each token stands in one at least."""
    body = WINDOW - 2
    return range(0, max(tokens - OVERLAP, 1), body - OVERLAP)


def batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Rows of like length together, so that padding is little, and not too many at once."""
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
