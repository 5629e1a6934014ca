"""Texts in bits that are invisible: one character for a 0, another one for a 1, eight for a byte.

A run of such bits (the "sneaky bits" of PyRIT are U+2062 and U+2064) is shown as the text that it
hides; other invisible characters hide nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import permutations
from typing import Final, NamedTuple

_BITS: Final = "\u200b\u200c\u200d\u2060\u2061\u2062\u2063\u2064\ufeff"
BITS: Final = frozenset(_BITS)
"""Characters that stand for bits: no text has many of them in a row."""
_RUN: Final = re.compile(f"[{_BITS}]{{16,}}+")
_ASCII_BYTE: Final = 8


class Revealed(NamedTuple):
    """The text of a run of bits, from `start` on: `places` are those of the first bit of each of
    its characters in the raw text."""

    start: int
    end: int
    text: str
    places: Sequence[int]


def revealed_bits(text: str) -> list[Revealed]:
    """The runs that hide a text, in order, in linear time."""
    if text.isascii():
        return []
    found = []
    for run in _RUN.finditer(text):
        hidden = _hidden(run[0])
        if hidden:
            places = []
            place = run.start()
            for char in hidden:
                places.append(place)
                place += _ASCII_BYTE * len(char.encode())
            found.append(Revealed(run.start(), run.end(), hidden, places))
    return found


def shown(text: str, revealed: Sequence[Revealed]) -> str:
    """The text with what its bits hide in their place."""
    if not revealed:
        return text
    parts, place = [], 0
    for each in revealed:
        parts += [text[place : each.start], each.text]
        place = each.end
    return "".join([*parts, text[place:]])


def unsettled_bits(text: str) -> int:
    """The position from which bits at the end of a text may still be those of a text."""
    return len(text.rstrip(_BITS))


def _hidden(run: str) -> str | None:
    """What the bits of a run say, if that is printable."""
    kinds = sorted(set(run))
    if len(kinds) != 2:
        return None
    for zero, one in permutations(kinds):
        bits = run.translate({ord(zero): "0", ord(one): "1"})
        whole = len(bits) // _ASCII_BYTE * _ASCII_BYTE
        data = int(bits[:whole], 2).to_bytes(whole // _ASCII_BYTE, "big")
        try:
            text = data.decode()
        except UnicodeDecodeError:
            continue
        if all(char.isprintable() or char.isspace() for char in text):
            return text
    return None
