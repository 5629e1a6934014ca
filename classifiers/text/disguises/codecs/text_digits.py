"""Whether the digits of Base64 and Base85 can be those of a text, told without decoding them.

Most runs of letters are words, paths and identifiers. Decoded they are noise: control characters,
and bytes that UTF-8 does not have side by side. Up to STRICT_BYTES a text has neither (`legible`),
and that can be seen from the digits that the upper bits of a byte are in. Bytes are ASCII, leads of
a character, or what continues one: ASCII is followed by ASCII or a lead, a lead by what continues.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Final

import numpy as np

from classifiers.text.disguises.codecs.legible import STRICT_BYTES

STRICT_BASE64: Final = 4 * STRICT_BYTES // 3 + 1
STRICT_BASE85: Final = 5 * STRICT_BYTES // 4
"""The digits of so many bytes."""
_ALPHABET: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_SPACES: Final = frozenset({*range(9, 14), *range(28, 32)})
"""Control characters that a text may have."""


def _digits(counts: Callable[[int], bool]) -> str:
    """The class of the digits whose value counts."""
    return "[" + "".join(digit for value, digit in enumerate(_ALPHABET) if counts(value)) + "]"


def _group() -> str:
    """An expression for four digits whose three bytes may stand side by side in a text. In its
    upper bits a byte has a digit, the lower four bits of one, or the lower two."""
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
_TEXT: Final = re.compile(rf".{{0,3}}?(?:(?:{_PACKED}).*|(?:{_group()})*+.{{0,3}})")


def may_be_base64(digits: str) -> bool:
    """Whether STRICT_BASE64 or fewer digits, without padding, may decode to a text in any phase."""
    return _TEXT.fullmatch(digits) is not None


def may_be_base85(digits: str, alphabet: str) -> bool:
    """Whether STRICT_BASE85 or fewer digits of the alphabet may decode to a text."""
    pairs = _pairs(alphabet)
    return all(digits[at : at + 2] in pairs for at in range(0, len(digits) - 4, 5))


@functools.cache
def _pairs(alphabet: str) -> frozenset[str]:
    """The first two of five digits whose first two bytes may stand side by side in a text."""
    both = np.arange(2**16)
    first, second = both >> 8, both & 255
    spaces = list(_SPACES)
    in_text = [
        (byte >= 0x80) & (byte < 0xF8) | (byte >= 0x20) & (byte < 0x7F) | np.isin(byte, spaces)
        for byte in (first, second)
    ]
    continues = (second >= 0x80) & (second < 0xC0)
    follows = np.where(first < 0x80, ~continues, (first < 0xC0) | continues)
    found = both[in_text[0] & in_text[1] & follows]
    # what the four bytes are at least and at most, in steps of the second digit
    numbers = np.unique([(found << 16) // 85**3, ((found + 1 << 16) - 1) // 85**3])
    return frozenset(alphabet[number // 85] + alphabet[number % 85] for number in numbers)
