"""Findings of several expressions in a view: the first look for all of them, then one by one."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from classifiers.text.disguises.views import PLAIN, View
from classifiers.text.patterns.candidates import Candidate, Expression, Finding
from classifiers.text.patterns.expressions import SearchSet, compiled_regex

_NEXT_WORD: Final = re.compile(r"\w*\W+")


@dataclass(frozen=True, slots=True)
class _Compiled:
    expression: Expression
    search: Any
    group: int


class Expressions:
    """Several expressions, and one look for all of them: most texts match none."""

    def __init__(self, expressions: Sequence[Expression], *, raw: bool) -> None:
        self._all: list[_Compiled] = []
        for expression in expressions:
            search = compiled_regex(expression.pattern, raw=raw)
            self._all.append(_Compiled(expression, search, search.groupindex.get(b"value", 0)))
        patterns = [each.pattern.replace("?P<value>", "?:") for each in expressions]
        self._which = SearchSet(patterns, raw=raw)

    def __bool__(self) -> bool:
        return bool(self._all)

    def may_match(self, data: bytes) -> bool:
        """Whether any of them matches in the UTF-8 bytes of a view."""
        return bool(self._all) and bool(self._which.matching(data))

    def findings(self, view: View) -> Iterator[Finding]:
        """All findings in a view; those of different expressions may overlap."""
        if not self._all:
            return
        data = view.text.encode()
        steps = {PLAIN} if view.name == PLAIN else view.steps
        places = _Places(view.text, data)
        # a single one is searched for anyway
        for index in self._which.matching(data) if len(self._all) > 1 else (0,):
            if steps <= self._all[index].expression.views:
                yield from _findings(self._all[index], view.text, data, places)


def _findings(each: _Compiled, text: str, data: bytes, places: _Places) -> Iterator[Finding]:
    place = 0
    while match := each.search.search(data, place):
        first, last = match.span(each.group)
        if first < 0:  # a branch without the group: all of it is the match
            first, last = match.span()
        start, end = places.character(first), places.character(last)
        # the context of one may be the context of the next; no match is found twice
        place = max(last, match.start() + 1)
        if start == end:
            continue
        finding = each.expression.judged(Candidate(text, start, end))
        if finding is not None:
            yield finding
            place = max(first + 1, places.byte(finding.end))
        elif not each.expression.skips and (word := _NEXT_WORD.match(text, start, end)):
            # the character before the word is its context
            place = max(first + 1, places.byte(word.end()) - 1)


class _Places:
    """The places of the characters of a text in its UTF-8 bytes; counted at the first question."""

    def __init__(self, text: str, data: bytes) -> None:
        self._data = data
        self._is_ascii = text.isascii()

    def character(self, byte: int) -> int:
        return byte if self._is_ascii else int(self._characters[byte])

    def byte(self, character: int) -> int:
        return character if self._is_ascii else int(self._bytes[character])

    @functools.cached_property
    def _leads(self) -> NDArray[np.bool_]:
        leads: NDArray[np.bool_] = (np.frombuffer(self._data, np.uint8) & 0xC0) != 0x80
        return leads

    @functools.cached_property
    def _characters(self) -> NDArray[np.int64]:
        return np.concatenate([[0], np.cumsum(self._leads)])

    @functools.cached_property
    def _bytes(self) -> NDArray[np.int64]:
        return np.append(np.flatnonzero(self._leads), len(self._data))
