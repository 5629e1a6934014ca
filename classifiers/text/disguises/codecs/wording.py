"""Words run together, and letters that are written more than once: no sign tells them either."""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Final

import re2

from classifiers.text.disguises.language import is_common, is_known, letters_in, words_of
from classifiers.text.disguises.rewriting import Replacement

_RUN: Final = re.compile(r"[A-Za-z]{3,}+")
_BESIDE: Final = frozenset(string.ascii_letters + string.digits + "_+/@=-.(")
"""What stands beside the parts of codes, paths, names and addresses."""
_SHORTEST_HUMPS, _SHORTEST_GLUED = 8, 12
_HUMP: Final = re.compile(r"[A-Z]?[a-z]+|[A-Z](?![a-z])")
_FEWEST_WORDS: Final = 4
_FEWEST_JOINED: Final = 6
_ANY_JOINED: Final = re2.compile(r"(?:[A-Za-z]{1,24}[-_.+]){5}[A-Za-z]")
_JOINED: Final = re.compile(
    r"(?<![^\s\"'(])[A-Za-z]{1,24}+([-_.+])[A-Za-z]{1,24}+(?:\1[A-Za-z]{1,24}+){4,}+"
    r"(?=[\s\"')?!,]|\.?\Z|\.\s)"
)
_COMMON: Final = 0.5
"""The part of letters that are in common words: names of people are in none."""
_LONG: Final = 18
"""Letters from which on a full stop beside them ends a sentence: few names of hosts are so long."""
_MOST_LETTERS: Final = 400
"""Longer runs of letters are divided in parts of so many."""
_THRICE: Final = re.compile(r"([A-Za-z])\1\1")
_INITIAL: Final = re.compile(r"^[ \t>*#\d.)-]{0,8}(?:([^\W\d_])[^\n]*)?$", re.MULTILINE)
_FEWEST_LINES: Final = 6
_LONGEST_LINE: Final = 200
_LIKELY_INITIALS: Final = 3.2
"""The most nats per letter of first letters that are meant as a text."""
_OF_WORDS: Final = string.ascii_letters + string.digits + "_.@/(+=-"


def worded(text: str) -> Iterator[Replacement]:
    """All words that can be told apart, or told at all."""
    yield from _joined(text)
    has_repeats = _THRICE.search(text) is not None
    for run in _RUN.finditer(text):
        start, end = run.span()
        if end - start < _SHORTEST_HUMPS and not has_repeats:
            continue
        if _is_part(text, start, end):
            continue
        letters = run[0]
        if has_repeats and _THRICE.search(letters):
            yield from _less_stretched(start, letters)
        elif len(letters) >= _SHORTEST_GLUED and letters[1:].islower() or letters.isupper():
            yield from _unglued(start, letters)
        elif len(letters) >= _SHORTEST_HUMPS:
            yield from _between_humps(start, letters)


def _is_part(text: str, start: int, end: int) -> bool:
    """Whether letters are a part of a code, a path, a name or an address."""
    is_long = end - start >= _LONG
    if start and text[start - 1] in _BESIDE and text[start - 1] != "(":
        return not (is_long and text[start - 1] == ".")
    if end == len(text) or text[end] not in _BESIDE or (is_long and text[end] == "."):
        return False
    return text[end] not in "-." or text[end + 1 : end + 2].isalnum()


def unsettled(text: str) -> int:
    """The position from which `worded` may read a text that goes on differently."""
    return len(text.rstrip(_OF_WORDS)) if text.count("\n") < _FEWEST_LINES - 2 else 0


def _unglued(start: int, run: str) -> Iterator[Replacement]:
    """Spaces between the words of letters that have at least four of them."""
    if len(run) < _SHORTEST_GLUED:
        return
    for first in range(0, len(run), _MOST_LETTERS):
        letters = run[first : first + _MOST_LETTERS]
        words = words_of(letters.lower())
        if len(words) >= _FEWEST_WORDS and _are_common(words):
            yield _spaced(start + first, letters, words)


def _joined(text: str) -> Iterator[Replacement]:
    """Spaces between words that one and the same sign joins, and no letters beside them: names in
    programs have a bracket or a sign behind them."""
    for run in _JOINED.finditer(text) if _ANY_JOINED.search(text) else ():
        words = run[0].split(run[1])
        if len(words) >= _FEWEST_JOINED and _are_common([word.lower() for word in words], is_known):
            at = range(run.start(), run.end())
            yield Replacement(run.start(), run.end(), " ".join(words), at)


def _between_humps(start: int, letters: str) -> Iterator[Replacement]:
    """Spaces between the words of letters in camel case that have at least four of them."""
    words = _HUMP.findall(letters)
    is_whole = sum(map(len, words)) == len(letters)
    fewest = _FEWEST_WORDS + letters[0].islower()  # names in programs begin with a small letter
    if len(words) >= fewest and is_whole and _are_common([w.lower() for w in words], is_known):
        yield _spaced(start, letters, words)


def _are_common(words: Sequence[str], is_one: Callable[[str], bool] = is_common) -> bool:
    common = sum(len(word) for word in words if is_one(word))
    return common >= _COMMON * sum(map(len, words))


def _spaced(start: int, letters: str, words: Sequence[str]) -> Replacement:
    at: list[int] = []
    parts: list[str] = []
    place = 0
    for word in words:
        if place:
            at.append(start + place)
            parts.append(" ")
        parts.append(letters[place : place + len(word)])
        at.extend(range(start + place, start + place + len(word)))
        place += len(word)
    return Replacement(start, start + len(letters), "".join(parts), at)


def _less_stretched(start: int, letters: str) -> Iterator[Replacement]:
    """Letters that come three times or more once; if all of a word do, as often as they were."""
    repeated = [(char, len(list(same))) for char, same in groupby(letters)]
    counts = [count for _, count in repeated]
    is_often = max(counts) > 3 or sum(count > 2 for count in counts) > 1 or letters == "aaa"
    if not is_often or (len(counts) == 1 and letters[0] not in "ai"):
        return
    times = next((n for n in (5, 4, 3) if all(count % n == 0 for count in counts)), 0)
    at: list[int] = []
    kept: list[str] = []
    place = start
    for char, count in repeated:
        fewer = count // times if times else 1 if count > 2 else count
        kept.append(char * fewer)
        at.extend(range(place, place + fewer))
        place += count
    yield Replacement(start, start + len(letters), "".join(kept), at)


def acrostics(text: str) -> Iterator[Replacement]:
    """The first letters of lines, if they read as English; an empty line parts words."""
    if text.count("\n") < _FEWEST_LINES - 1:
        return
    lines = [line for line in _INITIAL.finditer(text) if len(line[0]) <= _LONGEST_LINE]
    letters = "".join(line[1] or " " for line in lines)
    initials = letters.replace(" ", "").lower()
    if len(initials) < _FEWEST_LINES or not initials.isascii():
        return
    words = (
        letters.lower().split() if " " in letters.strip() else words_of(initials[:_MOST_LETTERS])
    )
    is_likely = letters_in(letters).mean <= _LIKELY_INITIALS
    if is_likely or (len(words) < len(initials) / 2 and _are_common(words)):
        at = [line.start(1) if line[1] else line.start() for line in lines]
        yield Replacement(lines[0].start(), lines[-1].end(), letters, at)
