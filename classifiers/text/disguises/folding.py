"""Lookalike and invisible characters undone, for patterns and for an encoder.

Unicode offers many ways to write one letter (UTS 39, UAX 15). `fold` maps a text character by
character to plain small letters: the folding of a character depends on no other, so that a window
of a stream folds as the whole does, and a folded character stands for one raw character, but for
texts in `invisible_bits`. `readable`
is gentler: it leaves words of other scripts alone.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from classifiers.text.disguises.confusables import CONFUSABLES, TWINS
from classifiers.text.disguises.invisible_bits import BITS, Revealed, revealed_bits, shown

_TABLE_SIZE: Final = 2**16
_FILLERS: Final = frozenset("\u115f\u1160\u2065\u3164\uffa0")
_BLANKS: Final = frozenset("\u2800")
_NOT_ASCII: Final = re.compile(r"([^\x00-\x7f]+)")
_BREAKS: Final = frozenset("\n\x0b\x0c\x85\u2028\u2029")


@dataclass(eq=False)
class Folded:
    """A text folded character by character; `span` maps back to the raw text.

    `is_simple`: each character folds to one, which need not be found out. `revealed`: the invisible
    bits in the raw text, whose characters are in the folded one.
    """

    raw: str
    text: str
    _fold_code: Callable[[int], str]
    is_simple: bool = False
    revealed: Sequence[Revealed] = ()

    def span(self, start: int, end: int) -> tuple[int, int]:
        """Position of `text[start:end]` in `raw`: whole characters, with those dropped in between.

        Marks that combine with the last character belong to it. Raises IndexError for a span
        outside the text.
        """
        if not 0 <= start <= end <= len(self.text):
            raise IndexError(f"no span {start} to {end} in a text of {len(self.text)} characters")
        origin = None if self.is_simple else self._origin
        if origin is None:
            return start, end
        if start == end:
            place = self.origin(start)
            return place, place
        stop = int(origin[end - 1]) + 1
        if self.revealed and self.raw[stop - 1] in BITS:
            stop = self.origin(end)  # all bits of the last character
        while stop < len(self.raw) and unicodedata.category(self.raw[stop])[0] == "M":
            if self._fold_code(ord(self.raw[stop])):
                break
            stop += 1
        return int(origin[start]), stop

    def origin(self, position: int) -> int:
        """The position in `raw` of the character text[position], or the end of `raw`."""
        if self.is_simple:
            return position
        origin = self._origin
        if origin is None:
            return position
        return int(origin[position]) if position < len(origin) else len(self.raw)

    def place(self, position: int) -> int:
        """The position in `text` of what raw[position:] folds to."""
        if self.is_simple:
            return position
        origin = self._origin
        return position if origin is None else int(np.searchsorted(origin, position))

    @cached_property
    def _origin(self) -> NDArray[np.int64] | None:
        # None where every character folds to one character.
        if self.raw.isascii() and len(self.raw) == len(self.text):
            return None
        lengths = np.fromiter(
            map(len, map(self._fold_code, map(ord, self.raw))), np.int64, len(self.raw)
        )
        for each in self.revealed:
            lengths[each.places] = [len(self._fold_code(ord(char))) for char in each.text]
        return np.repeat(np.arange(len(self.raw)), lengths)


class _Table(dict[int, str]):
    """The folding of each code point; filled on demand, up to a bound."""

    def __init__(self, fold_one: Callable[[str], str]) -> None:
        super().__init__()
        self._fold_one = fold_one

    def __missing__(self, code: int) -> str:
        folded = self._fold_one(chr(code))
        if len(self) < _TABLE_SIZE:
            self[code] = folded
        return folded


def invisible(char: str) -> str | None:
    """The text that an invisible character hides, which may be empty; None for a visible one.

    Tag characters hide ASCII, and so do the variation selectors that smuggle bytes.
    """
    code, category = ord(char), unicodedata.category(char)
    if 0xE0000 <= code < 0xE1000:
        hidden = code - 0xE0000 if code < 0xE0100 else code - 0xE0100 + 16
        return chr(hidden) if 0x20 <= hidden < 0x7F else ""
    if category == "Cc":
        return None if char.isspace() else ""
    if category == "Cf" or char in _FILLERS or 0xFE00 <= code < 0xFE10 or 0xFFF0 <= code < 0xFFF9:
        return ""
    return None


def _latin(char: str) -> str:
    # The Latin reading of a lookalike, in its case; other characters are returned unchanged.
    reading = CONFUSABLES.get(char) or CONFUSABLES.get(char.casefold())
    if reading is None:
        return char
    return reading.upper() if char.isupper() else reading


def _digit(char: str) -> str:
    value = unicodedata.digit(char, None) if len(char) == 1 else None
    return char if value is None else str(value)


def _uncover(char: str) -> str:
    hidden = invisible(char)
    if hidden is not None:
        return hidden
    if char.isspace() or char in _BLANKS:
        return "\n" if char in _BREAKS else " "
    if 0xD800 <= ord(char) < 0xE000:
        return "\N{REPLACEMENT CHARACTER}"  # half a surrogate pair cannot be encoded
    if char in CONFUSABLES:
        return _latin(char)
    parts = unicodedata.normalize("NFKD", char)
    kept = (part for part in parts if unicodedata.category(part) not in ("Mn", "Me"))
    # Recomposed, since NFKD also splits syllables of Hangul.
    return unicodedata.normalize("NFC", "".join(_digit(_latin(part)) for part in kept))


def _fold_char(char: str) -> str:
    return _UNCOVERED[ord(char)].replace("\n", " ").casefold()


_UNCOVERED: Final = _Table(_uncover)
_FOLDED: Final = _Table(_fold_char)


def fold(text: str) -> Folded:
    """The text in small Latin letters where a character resembles one, with spaces for white space.

    Marks and invisible characters are dropped. Words of other scripts turn into letter sequences
    that only patterns can use.
    """
    folded = fold_simple(text)
    if folded is not None:
        return Folded(text, folded, _FOLDED.__getitem__, True)
    return _through(_FOLDED, text)


def fold_simple(text: str) -> str | None:
    """What `fold` makes of a text whose every character folds to one, and in which there is nothing
    to uncover; None for any other."""
    # Most texts: to find that out takes a tenth of the time of `translate`.
    spaced = text.replace("\n", " ")
    return spaced.lower() if spaced.isascii() and spaced.isprintable() else None


def uncover(text: str) -> Folded:
    """As `fold`, but letters keep their case and lines their ends, for disguises that need them."""
    if fold_simple(text) is not None:
        return Folded(text, text, _UNCOVERED.__getitem__, True)
    return _through(_UNCOVERED, text)


def _through(table: _Table, text: str) -> Folded:
    # Piece by piece: on ASCII alone `translate` is some thirty times as fast.
    revealed = revealed_bits(text)
    pieces = [text] if text.isascii() else _NOT_ASCII.split(shown(text, revealed))
    folded = "".join(piece.translate(table) for piece in pieces)
    return Folded(text, folded, table.__getitem__, revealed=revealed)


_WORD: Final = re.compile(r"[^\W\d_]+")
_STRAY_MARK: Final = re.compile(r"(?<=[A-Za-z])[\u0300-\u036f\u0489\u1ab0-\u1aff\u20d0-\u20ff]+")


def _keep(char: str) -> str:
    hidden = invisible(char)
    if hidden is not None:
        return hidden
    if 0xD800 <= ord(char) < 0xE000:
        return "\N{REPLACEMENT CHARACTER}"
    # Forms of Latin letters in any context: small capitals, squared letters, flags.
    small_capital = unicodedata.name(char, "").startswith("LATIN LETTER SMALL CAPITAL")
    return _latin(char) if small_capital or unicodedata.category(char) == "So" else char


_READABLE: Final = _Table(_keep)


def _script(char: str) -> str:
    return unicodedata.name(char, "").partition(" ")[0]


def readable(text: str) -> str:
    """The text for an encoder: NFKC, without invisible characters, lookalikes replaced.

    Lookalikes become Latin in words that mix scripts, and in words of nothing but twins of Latin
    letters, unless another word of the text is truly of their script. Genuine words of other
    scripts stay unchanged.
    """
    if text.isascii() and text.isprintable():
        return text
    text = shown(text, revealed_bits(text))
    plain = unicodedata.normalize("NFKC", text.translate(_READABLE))
    if plain.isascii():
        return plain
    plain = _STRAY_MARK.sub("", plain)
    scripts = _genuine_scripts(plain)

    def settle(match: re.Match[str]) -> str:
        word = match[0]
        if word.isascii():
            return word
        used = {_script(char) for char in word}
        foreign = used - {"LATIN"}
        mixed = len(used) > 1
        posing = "LATIN" in scripts and len(word) > 1 and not foreign & scripts
        if foreign and (mixed or (posing and TWINS.issuperset(word))):
            return "".join(map(_latin, word))
        return word

    return _WORD.sub(settle, plain)


def _genuine_scripts(text: str) -> set[str]:
    # Scripts of words that cannot be mistaken for Latin.
    words = (word for word in _WORD.findall(text) if word.isascii() or not TWINS.issuperset(word))
    scripts = (frozenset({"LATIN"} if word.isascii() else map(_script, word)) for word in words)
    return {script for word_scripts in scripts if len(word_scripts) == 1 for script in word_scripts}
