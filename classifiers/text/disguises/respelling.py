"""Words in other spellings, undone: l e t t e r s apart, l33t, ROT13 and reversed.

Each function gives the replacements that undo one spelling. They treat small and capital letters
alike, and need a text whose lookalikes are replaced (`folding`). With `wary` they skip spellings
that ordinary texts have too: initials, abbreviations, product names.
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Final

import re2

from classifiers.text.disguises.language import letters_in
from classifiers.text.disguises.rewriting import Replacement

_LETTER: Final = r"[A-Za-z0-9@$!]"
_APART: Final = re.compile(
    rf"(?<![A-Za-z0-9]){_LETTER}( {{1,3}}| ?[-._*/|,+~·•:;=#'\"] ?){_LETTER}(?![A-Za-z0-9])"
    rf"(?:\1{_LETTER}(?![A-Za-z0-9]))++"
)
_PAIR: Final = re.compile(rf"(?:(?<=\s\s)|^)({_LETTER})\W({_LETTER})(?=\s\s|$)")
# A first search with RE2, which is faster by far: most texts have no letters apart.
_ANY_APART: Final = re2.compile(
    rf"(?:^|[^A-Za-z0-9]){_LETTER}(?:[^A-Za-z0-9]{{1,3}}{_LETTER}){{2}}(?:[^A-Za-z0-9]|$)"
)
_ARTICLES: Final = "aAiI"
APART: Final = (
    rf"{_LETTER}(?:(?: {{1,3}}| ?[-._*/|,+~·•:;=#'\"] ?){_LETTER}){{2,}}",
    rf"(?s:{_LETTER}.{_LETTER}\s\s)",
)
"""RE2 expressions of all letters apart, and of more."""

_SIGNS: Final = str.maketrans("01345789@$!|+", "oieastbgasiit")
_L_FOR_ONE: Final = str.maketrans("1!|", "lll")
_ANY_SIGN: Final = re2.compile(r"[A-Za-z][0-9@$!|+]|[0-9@$!|+][A-Za-z]")
_TOKEN: Final = re.compile(
    r"(?<![A-Za-z0-9@$!|+])(?:[A-Za-z]++(?=[0-9@$!|+])|[0-9@$!|+]++(?=[A-Za-z]))[A-Za-z0-9@$!|+]*+"
)
_TOKEN_CHARACTERS: Final = string.ascii_letters + string.digits + "@$!|+"
_VOWEL_SIGN: Final = re.compile(r"[b-df-hj-np-tv-xz][0134@!][b-df-hj-np-tv-z57$]", re.IGNORECASE)
_NUMBER: Final = re.compile(r"(?<![A-Za-z0-9@$!|+])[0134578@$]{1,3}(?![A-Za-z0-9@$!|+])")
_MANY: Final = 3
_MOST_WORDS_TO_ONE: Final = 6
_DOMAIN: Final = re.compile(r"[-.][A-Za-z0-9]")

_WORD: Final = re.compile(r"[A-Za-z]+")
_COMMON: Final = """
a about after again all also an and any are as at be because been before being but by can could did
do does for from get give had has have he her him his how i if in into is it its just like list make
many may me more most my need no not now of on only or other our out over please she should show so
some step such tell than that the their them then there these they this to up us use using want was
we were what when where which who why will with without would write you your
"""
_CHANCE: Final = "vs nf ng na ab ba er era ton dna si ni ti su em won saw tub nac pu"
FUNCTION_WORDS: Final = frozenset(_COMMON.split())
_WORDS_BY_CHANCE: Final = frozenset(_CHANCE.split())
_MIN_EVIDENCE: Final = 2
_SMALL: Final = string.ascii_lowercase
_TURNED: Final = _SMALL[13:] + _SMALL[:13]
_ROT13: Final = str.maketrans(_SMALL + _SMALL.upper(), _TURNED + _TURNED.upper())
_PERCENT: Final = (
    *(8.17, 1.49, 2.78, 4.25, 12.70, 2.23, 2.02, 6.09, 6.97, 0.15, 0.77, 4.03, 2.41),
    *(6.75, 7.51, 1.93, 0.10, 5.99, 6.33, 9.06, 2.76, 0.98, 2.36, 0.15, 1.97, 0.07),
)
"""Frequency of the letters a to z in English (Lewand, Cryptological Mathematics, 2000)."""
_FEW_LETTERS: Final = 12
_MOST_COUNTED: Final = 2000
_TURNED_GAIN: Final = 0.25
"""Nats per letter. English in ROT13 gains 0.77 when it is decoded; plain English loses as much."""


def letters_apart(text: str, *, articles: bool = False, wary: bool = False) -> list[Replacement]:
    """Join three or more letters that one and the same separator keeps apart.

    Wider gaps remain as spaces between words; two letters are joined between such gaps only. With
    `articles` an "a" or "i" at either end of a run of spaced letters remains a word.
    """
    if not _ANY_APART.search(text):
        return []
    edits: list[Replacement] = []
    long = several = 0
    for run in _APART.finditer(text):
        start, end = run.span()
        separator, step = run[1], 1 + len(run[1])
        letters = text[start:end:step]
        if articles and separator.isspace():
            start += step * (letters[0] in _ARTICLES)
            end -= step * (letters[-1] in _ARTICLES)
        joined = text[start:end:step]
        if not joined or not any(map(str.isalpha, joined)):
            continue
        edits.append(Replacement(start, end, joined, range(start, end, step)))
        long += len(letters) > 4 and not (joined.isupper() and "." in separator)
        several += "." not in separator
    if not edits or (wary and not long and several < 2):
        return []
    pairs = [
        Replacement(pair.start(), pair.end(), pair[1] + pair[2], (pair.start(1), pair.start(2)))
        for pair in _PAIR.finditer(text)
    ]
    return _without_overlaps(edits + pairs) if pairs else edits


def _without_overlaps(edits: list[Replacement]) -> list[Replacement]:
    kept: list[Replacement] = []
    for edit in sorted(edits, key=lambda edit: edit.start):
        if not kept or kept[-1].end <= edit.start:
            kept.append(edit)
    return kept


def leet(text: str, *, one: str = "i", wary: bool = False) -> list[Replacement]:
    """Replace signs and digits by letters in words that have letters; a 1 becomes `one`: i or l.

    With `wary` only where leet is likely. In a text with many such words, short numbers are words.
    """
    if not _ANY_SIGN.search(text):
        return []
    edits = _unleeted(text, one, wary=wary)
    many = len(edits) >= _MANY and _MOST_WORDS_TO_ONE * len(edits) >= len(text.split())
    if not wary or not many:
        return edits
    numbers = (
        Replacement(
            number.start(),
            number.end(),
            _letters(number[0], one),
            range(number.start(), number.end()),
        )
        for number in _NUMBER.finditer(text)
    )
    return _without_overlaps([*_unleeted(text, one, wary=False), *numbers])


def _unleeted(text: str, one: str, *, wary: bool) -> list[Replacement]:
    edits: list[Replacement] = []
    for token in _TOKEN.finditer(text):
        word = token[0].rstrip("!|+")
        address = "@" in word and _DOMAIN.match(text, token.end())
        if wary and (address or not _VOWEL_SIGN.search(word)):
            continue
        letters = _letters(word, one)
        if letters != word:
            start, end = token.start(), token.start() + len(word)
            edits.append(Replacement(start, end, letters, range(start, end)))
    return edits


def _letters(word: str, one: str) -> str:
    return (word.translate(_L_FOR_ONE) if one == "l" else word).translate(_SIGNS)


def _rot13(text: str) -> str:
    return text.translate(_ROT13)


def _backwards(text: str) -> str:
    return text[::-1]


def _marks(undo: Callable[[str], str]) -> frozenset[str]:
    # Function words in the disguise, without single letters and words that occur by chance.
    disguised = (undo(word) for word in FUNCTION_WORDS)
    return frozenset(
        word
        for word in disguised
        if len(word) > 1 and word not in FUNCTION_WORDS and word not in _WORDS_BY_CHANCE
    )


def _two_of(marks: frozenset[str]) -> Any:
    either = "|".join(sorted(marks))
    return re2.compile(rf"(?is)\b(?:{either})\b.*\b(?:{either})\b")


_UNDONE: Final[Sequence[Callable[[str], str]]] = (_rot13, _backwards)
_MARKS: Final = {undo: _marks(undo) for undo in _UNDONE}
_ANY_ROT13: Final = _two_of(_MARKS[_rot13])
_ANY_BACKWARDS: Final = _two_of(_MARKS[_backwards])


# in ROT13 "or" is "be", so that neither is evidence
_NEVER_TURNED: Final = sorted(
    word for word in FUNCTION_WORDS if len(word) > 1 and _rot13(word) not in FUNCTION_WORDS
)
_ANY_FUNCTION_WORD: Final = re2.compile(rf"(?i)\b(?:{'|'.join(_NEVER_TURNED)})\b")
_GAINS: Final = {
    letter: math.log(turned / percent)
    for letter, percent, turned in zip(_SMALL, _PERCENT, _PERCENT[13:] + _PERCENT[:13], strict=True)
}


def unsettled_leet(text: str) -> int:
    """The position from which `leet` may read a text that goes on differently."""
    return len(text.rstrip(_TOKEN_CHARACTERS))


def unsettled_pairs(text: str) -> int:
    """The position from which `letters_apart` may join pairs once it joins anything."""
    pair = _PAIR.search(text)
    return pair.start() if pair else len(text)


def unsettled_rot13(text: str) -> int:
    """The position from which `rot13` may read a text that goes on differently."""
    complete = text.rstrip(string.ascii_letters)
    return _last_stretch(text) if _ANY_FUNCTION_WORD.search(complete) else 0


def unsettled_backwards(text: str) -> int:
    """The position from which `backwards` may read a text that goes on differently."""
    return _last_stretch(text)


def _last_stretch(text: str) -> int:
    # The first word after the last function word; the word at the end may go on.
    start = len(text)
    for word in reversed(list(_WORD.finditer(text))):
        lower = word[0].lower()
        if word.end() < len(text) and len(lower) > 1 and lower in FUNCTION_WORDS:
            break
        start = word.start()
    return start


def rot13(text: str) -> list[Replacement]:
    """Decode stretches without an English function word that have two or more in ROT13, and read
    as English rather afterwards.

    A text without any function word is decoded as a whole if its letter frequencies are those of
    English afterwards.
    """
    stretches = _disguised(text, _rot13) if _ANY_ROT13.search(text) else []
    if not stretches and not _ANY_FUNCTION_WORD.search(text) and _turns_english(text):
        stretches = [(0, len(text))]
    return [
        Replacement(start, end, _rot13(text[start:end]), range(start, end))
        for start, end in stretches
    ]


def _turns_english(text: str) -> bool:
    counts = Counter(text[:_MOST_COUNTED].lower())
    letters = sum(counts[letter] for letter in _GAINS)
    gain = sum(counts[letter] * nats for letter, nats in _GAINS.items())
    return letters >= _FEW_LETTERS and gain > _TURNED_GAIN * letters


def backwards(text: str) -> list[Replacement]:
    """Reverse stretches without an English function word that have two or more backwards, and read
    as English rather afterwards."""
    return [
        Replacement(start, end, _backwards(text[start:end]), range(end - 1, start - 1, -1))
        for start, end in (_disguised(text, _backwards) if _ANY_BACKWARDS.search(text) else ())
    ]


def _disguised(text: str, undo: Callable[[str], str]) -> list[tuple[int, int]]:
    """The stretches with marks of a disguise that is undone by `undo`. Marks alone do not tell: a
    program that imports `os` has "so" backwards."""
    return [
        (start, end)
        for start, end in _stretches(text, _MARKS[undo])
        if letters_in(undo(text[start:end])).mean < letters_in(text[start:end]).mean
    ]


def _stretches(text: str, marks: frozenset[str]) -> list[tuple[int, int]]:
    stretches: list[tuple[int, int]] = []
    start = end = evidence = 0
    inside = False
    for word in _WORD.finditer(text):
        lower = word[0].lower()
        # A single letter is no evidence: "a" may be "n" in ROT13.
        if len(lower) > 1 and lower in FUNCTION_WORDS:
            if evidence >= _MIN_EVIDENCE:
                stretches.append((start, end))
            evidence, inside = 0, False
            continue
        if not inside:
            start, inside = word.start(), True
        end = word.end()
        evidence += lower in marks
    if evidence >= _MIN_EVIDENCE:
        stretches.append((start, end))
    return stretches
