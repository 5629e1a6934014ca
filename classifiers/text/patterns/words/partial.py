"""Words and phrases with which a text may end, whole or in part."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Final

from classifiers.text.patterns.partial import Suffix

JOINTS: Final = str.maketrans("-_", "  ")
"""What may stand in place of the space between the words of a phrase."""


class PartialWords:
    """Words and phrases, with one space between their words."""

    def __init__(self, words: Sequence[str], *, any_place: bool, gap: int) -> None:
        self._words = sorted(set(words))
        # a phrase may have a joint in a word of its own: self-harm now
        self._spaced = sorted({word.translate(JOINTS) for word in words})
        self._any_place = any_place
        self._firsts = frozenset(word[0] for word in self._words)
        self._longest = max((len(word) + (gap - 1) * word.count(" ") for word in words), default=0)

    def longest_suffix(self, text: str) -> Suffix:
        """The longest suffix with which a word begins, or that is one."""
        begin = max(0, len(text) - self._longest)
        for start in range(begin, len(text)):
            if text[start] in self._firsts and self._begins(text, start):
                return Suffix(start, min(start, begin))
        return Suffix(len(text), begin)

    def _begins(self, text: str, start: int) -> bool:
        if not self._any_place and start and in_word(text[start - 1]) and in_word(text[start]):
            return False
        suffix = text[start:]
        if "  " in suffix:
            suffix = " ".join(filter(None, suffix.split(" "))) + " " * suffix.endswith(" ")
        return _has(self._words, suffix) or _has(self._spaced, suffix.translate(JOINTS))


def _has(words: Sequence[str], prefix: str) -> bool:
    index = bisect_left(words, prefix)
    return index < len(words) and words[index].startswith(prefix)


def in_word(char: str) -> bool:
    """Whether a character is part of a word: a letter, a digit or an underscore."""
    return char.isalnum() or char == "_"
