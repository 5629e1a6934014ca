"""Letters in another alphabet: Morse, braille, spelling alphabets, numbers of letters."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterator
from typing import Final

import re2

from classifiers.text.disguises.codecs.base import Codec
from classifiers.text.disguises.language import is_language
from classifiers.text.disguises.rewriting import Replacement

_MORSE_TABLE: Final = """
a.- b-... c-.-. d-.. e. f..-. g--. h.... i.. j.--- k-.- l.-.. m-- n-. o--- p.--. q--.- r.-. s... t-
u..- v...- w.-- x-..- y-.-- z--.. 0----- 1.---- 2..--- 3...-- 4....- 5..... 6-.... 7--... 8---..
9----. ..-.-.- ,--..-- ?..--.. '.----. !-.-.-- /-..-. (-.--. )-.--.- &.-... :---... ;-.-.-. =-...-
+.-.-. --....- _..--.- ".-..-. $...-..- @.--.-.
"""
_FROM_MORSE: Final = {entry[1:]: entry[0] for entry in _MORSE_TABLE.split()}
_FROM_BRAILLE: Final = dict(zip("⠁⠃⠉⠙⠑⠋⠛⠓⠊⠚⠅⠇⠍⠝⠕⠏⠟⠗⠎⠞⠥⠧⠺⠭⠽⠵", string.ascii_lowercase, strict=True))
_SIGN: Final = "[.·•∙⋅_–—−-]"  # noqa: RUF001
_MORSE: Final = re.compile(
    rf"(?<![^\s\"'(`/|]){_SIGN}{{1,6}}(?:(?: {{1,3}}| ?[/|] ?|\n){_SIGN}{{1,7}}){{3,}}+"
)
# First searches with RE2, which is faster by far: most texts have no run at all.
_ANY_MORSE: Final = re2.compile(rf"{_SIGN}{{1,6}}(?:(?: {{1,3}}| ?[/|] ?|\n){_SIGN}{{1,7}}){{3}}")
_DOTS: Final = str.maketrans(dict.fromkeys("·•∙⋅", ".") | dict.fromkeys("–—−_", "-"))  # noqa: RUF001
_WORD_GAP: Final = re.compile(r" ?[/|] ?|\n| {2,}")
_BRAILLE: Final = re.compile(r"[\u2801-\u28ff][\u2800-\u28ff ]*[\u2801-\u28ff]")
_BRAILLE_DIGITS: Final = dict(zip("abcdefghij", "1234567890", strict=True))
_NUMBER_CELL: Final = "⠼"
_SPELLED: Final = (
    "alfa alpha bravo charlie delta echo foxtrot golf hotel india juliett juliet kilo lima mike "
    "november oscar papa quebec romeo sierra tango uniform victor whiskey whisky xray x-ray yankee "
    "zulu"
)
_ANY_SPELLED: Final = rf"(?:{'|'.join(_SPELLED.split())})"
_NATO_GAP: Final = r"(?:[ \t,.·/|_-]{1,4}|\r?\n)"
_NATO: Final = re.compile(
    rf"\b{_ANY_SPELLED}(?:(?:{_NATO_GAP}|{_NATO_GAP}?[(<]space[>)]{_NATO_GAP}?){_ANY_SPELLED}){{2,}}+",
    re.IGNORECASE,
)
_ANY_NATO: Final = re2.compile(
    rf"(?i){_ANY_SPELLED}(?:{_NATO_GAP}|{_NATO_GAP}?[(<]space[>)]{_NATO_GAP}?){_ANY_SPELLED}"
)
_NATO_WORD: Final = re.compile(rf"({_ANY_SPELLED})|([/|\n]|[(<]space[>)])", re.IGNORECASE)
_LETTER_NUMBERS: Final = re.compile(
    r"(?<![0-9A-Za-z.-])[0-9]{1,2}(?:(?:[-.,]|, | {1,3}| ?[/|] ?)[0-9]{1,2}){5,}+"
)
_ANY_LETTER_NUMBERS: Final = re2.compile(r"[0-9]{1,2}(?:(?:[-.,]|, | {1,3}| ?[/|] ?)[0-9]{1,2}){5}")
_NUMBER: Final = re.compile(r"([0-9]{1,2})|([^0-9]+)")
_MIN_DIGITS: Final = 6


def _from_morse(text: str) -> Iterator[Replacement]:
    for run in _MORSE.finditer(text) if _ANY_MORSE.search(text) else ():
        words = _WORD_GAP.split(run[0].translate(_DOTS))
        letters = [
            "".join(_FROM_MORSE.get(code, "\ufffd") for code in word.split()) for word in words
        ]
        decoded = " ".join(letters)
        digits = sum(map(str.isdigit, decoded))
        if "\ufffd" not in decoded and (is_language(decoded) or digits >= _MIN_DIGITS):
            yield Replacement(run.start(), run.end(), decoded)


def _from_braille(text: str) -> Iterator[Replacement]:
    for run in () if text.isascii() else _BRAILLE.finditer(text):
        chars, is_number = [], False
        for cell in run[0]:
            char = _FROM_BRAILLE.get(cell, "")
            is_number = cell == _NUMBER_CELL or (is_number and char in _BRAILLE_DIGITS)
            if cell in " \u2800":
                char = " "
            chars.append(_BRAILLE_DIGITS.get(char, char) if is_number else char)
        decoded = "".join(chars)
        if decoded.strip():
            yield Replacement(run.start(), run.end(), decoded)


def _from_spelled(text: str) -> Iterator[Replacement]:
    for run in _NATO.finditer(text) if _ANY_NATO.search(text) else ():
        at: list[int] = []
        letters: list[str] = []
        for word in _NATO_WORD.finditer(run[0]):
            at.append(run.start() + word.start())
            letters.append(word[1][0].lower() if word[1] else " ")
        yield Replacement(run.start(), run.end(), "".join(letters))


def _from_letter_numbers(text: str) -> Iterator[Replacement]:
    for run in _LETTER_NUMBERS.finditer(text) if _ANY_LETTER_NUMBERS.search(text) else ():
        parts = list(_NUMBER.finditer(run[0]))
        between = Counter(part[2] for part in parts if part[2]).most_common(1)[0][0]
        letters = [
            (chr(96 + int(part[1])) if 1 <= int(part[1]) <= 26 else "\ufffd")
            if part[1]
            else ""
            if part[2] == between
            else " "
            for part in parts
        ]
        decoded = "".join(letters)
        if "\ufffd" not in decoded and is_language(decoded):
            yield Replacement(run.start(), run.end(), decoded)


def _all(text: str) -> Iterator[Replacement]:
    yield from _from_morse(text)
    yield from _from_braille(text)
    yield from _from_spelled(text)
    yield from _from_letter_numbers(text)


ALPHABET: Final = Codec(
    "alphabet",
    sign=rf"{_SIGN}{{1,6}}(?:(?: {{1,3}}| ?[/|] ?|\n){_SIGN}{{1,7}}){{3}}|[\x{{2801}}-\x{{28ff}}]"
    rf"|(?i:{_ANY_SPELLED}(?:{_NATO_GAP}|{_NATO_GAP}?[(<]space[>)]{_NATO_GAP}?){_ANY_SPELLED})"
    r"|(?:[0-9]{1,2}(?:[-.,]|, | {1,3}| ?[/|] ?)){5}[0-9]",
    run=rf"{_SIGN}{{1,6}}(?:(?: {{1,3}}| ?[/|] ?|\n){_SIGN}{{1,7}})+"
    rf"|[\x{{2801}}-\x{{28ff}}][\x{{2800}}-\x{{28ff}} ]*"
    rf"|(?i:{_ANY_SPELLED}(?:(?:{_NATO_GAP}|{_NATO_GAP}?[(<]space[>)]{_NATO_GAP}?){_ANY_SPELLED})+)"
    r"|[0-9]{1,2}(?:(?:[-.,]|, | {1,3}| ?[/|] ?)[0-9]{1,2})+",
    decode=_all,
)
