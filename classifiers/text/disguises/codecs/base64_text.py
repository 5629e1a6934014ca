"""Whether the digits of Base64 can be those of a text, told without decoding them.

Most runs of letters are words, paths and identifiers. Decoded they are noise: control characters,
and bytes that UTF-8 does not have side by side. Four digits are three bytes, and a byte's kind can
be seen from the digits that its upper bits are in, so that one expression reads a run in all four
phases.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

STRICT_BASE64: Final = 33
"""Digits up to which a legible text has no wrong character (`legible`): those of 24 bytes."""
_ALPHABET: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_SPACES: Final = frozenset({*range(9, 14), *range(28, 32)})
"""Control characters that a text may have."""


def _digits(counts: Callable[[int], bool]) -> str:
    """The class of the digits whose value counts."""
    return "[" + "".join(digit for value, digit in enumerate(_ALPHABET) if counts(value)) + "]"


def _group() -> str:
    """An expression for four digits whose bytes may stand side by side in a text.

    Bytes are ASCII, leads of a character, or what continues one. ASCII is followed by ASCII or a
    lead, a lead by a continuation. In its upper bits a byte has a digit, the lower four bits of
    one, or the lower two.
    """
    ascii_pairs = (
        rf"{_digits(lambda value: value % 4 == 0)}{_digits(lambda v: v in _SPACES or v >= 32)}",
        rf"{_digits(lambda value: value % 4 == 1)}.",
    )
    third = {
        "ascii": "|".join(ascii_pairs),
        "continued": rf"{_digits(lambda value: value % 4 == 2)}.",
        "lead": rf"{_digits(lambda value: value % 4 == 3)}.",
    }
    second = {
        "ascii": _digits(lambda value: value % 16 < 8),
        "continued": _digits(lambda value: 8 <= value % 16 < 12),
        "lead": _digits(lambda value: value % 16 >= 12),
    }
    first = {
        "ascii": _digits(lambda v: 8 <= v < 32 or any(space // 4 == v for space in _SPACES)),
        "continued": _digits(lambda value: 32 <= value < 48),
        "lead": _digits(lambda value: 48 <= value < 62),
    }
    after = {
        "ascii": ("ascii", "lead"),
        "continued": ("ascii", "continued", "lead"),
        "lead": ("continued",),
    }
    pairs = {
        kind: f"{digit}(?:{'|'.join(third[next_kind] for next_kind in after[kind])})"
        for kind, digit in second.items()
    }
    return "|".join(
        f"{digit}(?:{'|'.join(pairs[next_kind] for next_kind in after[kind])})"
        for kind, digit in first.items()
    )


_PACKED: Final = "H4|e[AJN]"
"""How packed bytes begin, of which nothing more can be told."""
_TEXT: Final = re.compile(rf".{{0,3}}?(?:(?:{_PACKED}).*|(?:{_group()})++.{{0,3}})")


def may_be_text(digits: str) -> bool:
    """Whether STRICT_BASE64 or fewer digits, without padding, may decode to a text in any phase."""
    return _TEXT.fullmatch(digits) is not None
