from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch

from guard.fitting.prompts.vocabulary import typed, words

PIECES = ["knife", "cat", "##s", "42"]


class Pieces:
    """A tokenizer of words and of one piece behind a word, which by itself is no word."""

    def __len__(self) -> int:
        return len(PIECES)

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(PIECES[i] for i in ids).replace(" ##", "").removeprefix("##")

    def __call__(self, texts: Sequence[str], **_options: Any) -> SimpleNamespace:
        return SimpleNamespace(input_ids=[self._read(text) for text in texts])

    def _read(self, text: str) -> list[int]:
        ids: list[int] = []
        for word in text.split():
            bare = word.removesuffix("s")
            ids += [PIECES.index(bare) if bare in PIECES else 3] + [2] * (bare != word)
        return ids


def test_rows_that_are_read_as_themselves_can_be_typed() -> None:
    texts, possible = typed(Pieces(), torch.tensor([[0, 1], [0, 2], [2, 0]]))
    assert texts == ["knife cat", "knifes", "s knife"]
    assert possible.tolist() == [True, True, False]


def test_words_are_whole_and_of_letters() -> None:
    assert words(Pieces()) == [(0, "knife"), (1, "cat")]
