"""Bytes written as numbers: hexadecimal, binary, octal, decimal."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final

import re2

from classifiers.text.disguises.codecs.base import Codec
from classifiers.text.disguises.codecs.legible import legible
from classifiers.text.disguises.language import is_language
from classifiers.text.disguises.rewriting import Replacement

_GAP: Final = r"(?:, ?|[ :|/;_+.-])"
# A class comes first, so that the search goes from one such character to the next.
_HEX: Final = re.compile(
    r"[0-9A-Fa-f\\](?<![0-9A-Za-z].)(?:(?<=[\\0])x[0-9A-Fa-f]{2}|(?<!\\)[0-9A-Fa-f])"
    rf"(?:{_GAP}?(?:\\x|0x)?[0-9A-Fa-f]{{2}}){{3,}}+"
)
_BREAK: Final = r"[ \t]{0,4}\r?\n[ \t]{0,4}"
_LINE_END: Final = re.compile(_BREAK)
_SHORT_LINE: Final = re.compile(rf"{_BREAK}((?:[0-9A-Fa-f]{{2}}){{1,3}})(?![0-9A-Za-z])")
"""The last line of a block, which alone is no run."""
# A run of fewer digits that nothing marks decodes to nothing (`_from_hex`): a date has eight.
_ANY_HEX: Final = re2.compile(
    rf"(?:^|[^0-9A-Za-z])[0-9A-Fa-f]{{2}}(?:(?:{_GAP}|{_BREAK})?[0-9A-Fa-f]{{2}}){{5}}"
    r"|(?:\\x|0x)[0-9A-Fa-f]{2}"
)
_HEX_MARKS: Final = re.compile(r"\\x|0x|[^0-9A-Fa-f]")
_ANY_BITS: Final = re2.compile(r"[01]{7}(?:(?:, ?|[ \n|/;_+.-])?(?:0b)?[01]{7,8}){2}")
_BITS: Final = re.compile(
    r"(?<![0-9A-Za-z.])(?:0b)?[01]{7,8}(?:(?:, ?|[ \n|/;_+.-])?(?:0b)?[01]{7,8}){2,}+"
)
_BIT_MARKS: Final = re.compile(r"0b|[^01]+")
_ANY_NUMBERS: Final = re2.compile(r"[0-9]{2,3}(?:(?:, ?| ?[ \n|/;_+-] ?)(?:0o)?[0-9]{2,3}){3}")
_NUMBERS: Final = re.compile(
    r"(?<![0-9A-Za-z.])(?:0o)?[0-9]{2,3}(?:(?:, ?| ?[ \n|/;_+-] ?)(?:0o)?[0-9]{2,3}){3,}+"
)
_NUMBER: Final = re.compile("[0-9]{2,3}")


def _hexes(text: str) -> Iterator[Replacement]:
    if not _ANY_HEX.search(text):
        return
    lines: list[re.Match[str]] = []
    for run in _HEX.finditer(text):
        if lines and not _LINE_END.fullmatch(text, lines[-1].end(), run.start()):
            yield from _hex_lines(text, lines)
            lines = []
        lines.append(run)
    yield from _hex_lines(text, lines)


def _hex_lines(text: str, lines: Sequence[re.Match[str]]) -> Iterator[Replacement]:
    """Lines that stand one below the other: of one width, with a last one that may be shorter, as
    one text, and else each alone."""
    widths = [len(line[0]) for line in lines]
    if len({*widths[:-1]}) <= 1 and widths and widths[-1] <= widths[0]:
        block, end = "".join(line[0] for line in lines), lines[-1].end()
        rest = _SHORT_LINE.match(text, end) if widths[-1] == widths[0] else None
        ways = [(block + rest[1], rest.end())] if rest else []
        for digits, last in (*ways, (block, end)):
            if decoded := _from_hex(digits):
                yield Replacement(lines[0].start(), last, decoded)
                return
    for line in lines:
        if decoded := _from_hex(line[0]):
            yield Replacement(line.start(), line.end(), decoded)


def _from_hex(run: str) -> str | None:
    digits = _HEX_MARKS.sub("", run)
    digits = digits[: len(digits) // 2 * 2]
    marked = "\\x" in run or "0x" in run
    return legible(bytes.fromhex(digits)) if len(digits) >= (8 if marked else 12) else None


def _bits(text: str) -> Iterator[Replacement]:
    for run in _BITS.finditer(text) if _ANY_BITS.search(text) else ():
        parts = [part for part in _BIT_MARKS.split(run[0]) if part]
        whole = "".join(parts)
        widths = {len(part) for part in parts}
        width = widths.pop() if len(widths) == 1 and len(parts) > 1 else 8
        if width not in (7, 8) or len(whole) % width:
            width = 8 if len(whole) % 8 == 0 else 7
        codes = [int(whole[at : at + width], 2) for at in range(0, len(whole), width)]
        decoded = legible(bytes(code for code in codes if 0 < code < 256))
        if decoded and is_language(decoded):
            yield Replacement(run.start(), run.end(), decoded)


def _numbers(text: str) -> Iterator[Replacement]:
    for run in _NUMBERS.finditer(text) if _ANY_NUMBERS.search(text) else ():
        numbers = _NUMBER.findall(run[0])
        for base in (10, 8):
            decoded = _from_numbers(numbers, base)
            if decoded and is_language(decoded):
                yield Replacement(run.start(), run.end(), decoded)
                break


def _from_numbers(numbers: list[str], base: int) -> str | None:
    if base == 8 and any("8" in number or "9" in number for number in numbers):
        return None
    codes = [int(number, base) for number in numbers]
    return legible(bytes(codes)) if max(codes) < 256 else None


def _all(text: str) -> Iterator[Replacement]:
    yield from _hexes(text)
    yield from _bits(text)
    yield from _numbers(text)


_ANY_GAP: Final = r"(?:, ?| ?[ \n|/;_+.:-] ?)"
HEX: Final = Codec(
    "hex",
    sign=rf"(?:[0-9A-Fa-f]{{2}}{_GAP}?(?:\\x|0x)?){{4}}|[01]{{7}}"
    rf"|(?:[0-9]{{2,3}}{_ANY_GAP}(?:0o)?){{3}}[0-9]",
    run=rf"(?:\\x|0x)?[0-9A-Fa-f]{{2}}(?:(?:{_GAP}|{_BREAK})?(?:\\x|0x)?[0-9A-Fa-f]{{2}}){{3,}}"
    rf"|(?:0[bo])?[0-9]{{2,8}}(?:{_ANY_GAP}?(?:0[bo])?[0-9]{{2,8}})+",
    decode=_all,
)
