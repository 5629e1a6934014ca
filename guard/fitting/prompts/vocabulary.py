"""The words of a tokenizer: what prompts can be searched among without a word list."""

from __future__ import annotations

from typing import Any


def words(tokenizer: Any) -> list[tuple[int, str]]:
    """Every token that is a whole word of plain letters by itself, with that word."""
    found = {number: str(tokenizer.decode([number])).strip() for number in range(len(tokenizer))}
    plain = {n: word for n, word in found.items() if word.isascii() and word.isalpha()}
    if not plain:
        return []
    read = tokenizer(list(plain.values()), add_special_tokens=False).input_ids
    return [
        (number, word)
        for (number, word), again in zip(plain.items(), read, strict=True)
        if list(again) == [number]
    ]
