"""Words and phrases with typing errors in them: letters left out, put in, mistaken or swapped.

A run of words of a text is compared with a name letter by letter, without what stands between the
words. Names of MIN_LETTERS letters may have one typing error, those of TWO_FROM letters or more
two. What is misspelt is no word of a dictionary: "lord of the kings" is another lord, and so is
another number, "World War III". In ordinary prose nearly all words are in the dictionary, and no
more is looked at; for the others an index of deletions, as SymSpell has it, tells which names come
into question. The time is linear in the text, whatever it says.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations
from typing import Final, NamedTuple

from rapidfuzz.distance import OSA

from classifiers.text.patterns.partial import Suffix
from classifiers.text.patterns.words.ordinary import ordinary_words

MIN_LETTERS: Final = 6
TWO_FROM: Final = 10
MOST_LETTERS: Final = 100
"""Longer phrases are found as they are written."""
_INDEXED: Final = 7
"""Letters at the beginning of a name that are in the index."""
_KEPT: Final = 4096
"""Beginnings of runs whose names are kept: a stream is read again and again."""
_GAP_CHARACTERS: Final = 4
_WORD: Final = re.compile(r"[^\W_]+")
_GAP: Final = re.compile(rf"[ _.'&/-]{{0,{_GAP_CHARACTERS}}}")
_NUMERAL: Final = re.compile(r"[ivxlcdm]+")


class _Name(NamedTuple):
    letters: str
    words: frozenset[str]
    word_count: int
    edits: int


class Found(NamedTuple):
    """text[start:end] is the name number `name`, misspelt."""

    name: int
    start: int
    end: int


class ApproximateWords:
    """Folded words and phrases, found where they are misspelt, and not where they are not.

    `longest` is the most characters of a match.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self._names = [_name(text) for text in texts]
        able = [name for name in self._names if name.edits]
        self._ordinary = ordinary_words() if able else frozenset()
        self._edits = max((name.edits for name in able), default=0)
        self._letters = max((len(name.letters) + name.edits for name in able), default=0)
        self._words = max((name.word_count for name in able), default=0)
        self.longest = self._letters + _GAP_CHARACTERS * max(self._words - 1, 0)
        self._index: dict[str, list[int]] = {}
        self._beginnings: set[str] = set()
        groups: dict[tuple[str, int], list[int]] = {}
        for number, name in enumerate(self._names):
            if name.edits:
                groups.setdefault((name.letters[:_INDEXED], name.edits), []).append(number)
        for (beginning, edits), numbers in groups.items():
            for text in _deletions(beginning, edits):
                self._index.setdefault(text, []).extend(numbers)
        for beginning, edits in {
            (beginning[:length], edits)
            for beginning, edits in groups
            for length in range(1, _INDEXED + 1)
        }:
            self._beginnings.update(_deletions(beginning, edits))
        self._like = functools.lru_cache(_KEPT)(self._looked_up)

    def __bool__(self) -> bool:
        """Whether any of the words is long enough to be known with a typing error."""
        return self._edits > 0

    def find(self, text: str) -> Iterator[Found]:
        """All runs of words of a folded text that are a name with typing errors."""
        words = [match.span() for match in _WORD.finditer(text)]
        unusual = [i for i, place in enumerate(words) if self._is_unusual(text[slice(*place)])]
        for first in sorted({i for j in unusual for i in range(j - self._words + 1, j + 1)}):
            if first >= 0:
                yield from self._beginning_at(text, words[first : first + self._words])

    def longest_suffix(self, text: str) -> Suffix:
        """The longest suffix with which such a run may begin, or that is one."""
        begin = max(0, len(text) - self.longest)
        suffix, letters = len(text), ""
        last = len(text)
        for place in reversed([match.span() for match in _WORD.finditer(text, begin)]):
            letters = text[slice(*place)] + letters
            if len(letters) > self._letters or not _GAP.fullmatch(text, place[1], last):
                break
            last = place[0]
            if self._may_begin(letters):
                suffix = last
        return Suffix(suffix, min(suffix, begin))

    def _beginning_at(self, text: str, words: Sequence[tuple[int, int]]) -> Iterator[Found]:
        letters, run, last = "", [], words[0][0]
        for start, end in words:
            run.append(text[start:end])
            letters += run[-1]
            if len(letters) > self._letters or not _GAP.fullmatch(text, last, start):
                return
            last = end
            for number in self._like(letters[:_INDEXED]):
                if self._is(letters, run, self._names[number]):
                    yield Found(number, words[0][0], end)

    def _is(self, letters: str, run: Sequence[str], name: _Name) -> bool:
        """Whether a run of words is a name with typing errors."""
        if len(run) > name.word_count or not _within(letters, name.letters, name.edits):
            return False
        misspelt = [word for word in run if word not in name.words]
        return bool(misspelt) and all(map(self._is_unusual, misspelt))

    def _is_unusual(self, word: str) -> bool:
        """Whether a word may be a misspelt one."""
        return (
            1 < len(word) <= self._letters
            and word.isalpha()
            and word not in self._ordinary
            and not _NUMERAL.fullmatch(word)
        )

    def _looked_up(self, beginning: str) -> Sequence[int]:
        """The numbers of the names that may begin so, with typing errors."""
        found = (self._index.get(text, ()) for text in _deletions(beginning, self._edits))
        return sorted({number for numbers in found for number in numbers})

    def _may_begin(self, letters: str) -> bool:
        """Whether letters, with more behind them, may become a name with typing errors."""
        if len(letters) < _INDEXED:
            return not self._beginnings.isdisjoint(_deletions(letters, self._edits))
        names = (self._names[number] for number in self._like(letters[:_INDEXED]))
        return any(_may_become(letters, name) for name in names)


def _name(text: str) -> _Name:
    words = _WORD.findall(text)
    letters = "".join(words)
    count = sum(letter.isalpha() for letter in letters)
    is_able = count >= MIN_LETTERS and len(letters) <= MOST_LETTERS
    edits = (1 if count < TWO_FROM else 2) if is_able else 0
    return _Name(letters, frozenset(words), len(words), edits)


def _may_become(letters: str, name: _Name) -> bool:
    lengths = range(max(len(letters) - name.edits, 0), len(letters) + name.edits + 1)
    return any(_within(letters, name.letters[:length], name.edits) for length in lengths)


def _within(one: str, other: str, edits: int) -> bool:
    return OSA.distance(one, other, score_cutoff=edits) <= edits


def _deletions(text: str, most: int) -> Iterable[str]:
    """The text without up to `most` of its letters."""
    return {
        "".join(kept)
        for count in range(min(most, len(text)) + 1)
        for kept in combinations(text, len(text) - count)
    }
