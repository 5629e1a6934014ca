"""The words of a tokenizer's vocabulary, for a search for prompts without a word list."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def words(tokenizer: Any) -> list[tuple[int, str]]:
    """Every token that is a whole word of ASCII letters, as (token id, word)."""
    decoded = {number: str(tokenizer.decode([number])).strip() for number in range(len(tokenizer))}
    plain = {n: word for n, word in decoded.items() if word.isascii() and word.isalpha()}
    if not plain:
        return []
    encoded = tokenizer(list(plain.values()), add_special_tokens=False).input_ids
    return [
        (number, word)
        for (number, word), ids in zip(plain.items(), encoded, strict=True)
        if list(ids) == [number]
    ]


def typed(tokenizer: Any, tokens: Tensor) -> tuple[list[str], Tensor]:
    """The texts of rows of token ids `[rows, length]`, and which of them are tokenised to the same
    ids again, so that somebody can type them, `[rows]`."""
    rows = tokens.tolist()
    texts = [str(tokenizer.decode(row)).strip() for row in rows]
    read = tokenizer(texts, add_special_tokens=False).input_ids
    return texts, torch.tensor([row == list(ids) for row, ids in zip(rows, read, strict=True)])
