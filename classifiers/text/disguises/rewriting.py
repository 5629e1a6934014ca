"""A text with some of its runs replaced, and the origin of its characters in the source."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Replacement:
    """`text` in the place of source[start:end].

    `at` has the position in the source of each character of `text`; without it every character
    stands for the whole run, which can only be cut out as one.
    """

    start: int
    end: int
    text: str
    at: Sequence[int] | None = None


class Rewritten:
    """The source with `edits` applied, which must be sorted and must not overlap."""

    def __init__(self, source: str, edits: Sequence[Replacement]) -> None:
        parts: list[str] = []
        self._edits = edits
        self._starts: list[int] = []
        length = done = 0
        for edit in edits:
            between = source[done : edit.start]
            self._starts.append(length + len(between))
            parts += between, edit.text
            length += len(between) + len(edit.text)
            done = edit.end
        parts.append(source[done:])
        self.text = "".join(parts)

    def span(self, start: int, end: int) -> tuple[int, int]:
        """Origin of the non-empty `text[start:end]` in the source.

        Where letters changed their order, the shortest stretch that holds them all.
        """
        first, in_first = self._locate(start)
        last, in_last = self._locate(end - 1)
        if first is not None and first is last and first.at is not None:
            part = first.at[in_first : in_last + 1]
            return min(part), max(part) + 1
        return _start(first, in_first), _end(last, in_last)

    def _locate(self, position: int) -> tuple[Replacement | None, int]:
        # The edit that holds it and the offset inside; outside of edits the position in the source
        index = bisect_right(self._starts, position) - 1
        if index < 0:
            return None, position
        edit, inside = self._edits[index], position - self._starts[index]
        if inside < len(edit.text):
            return edit, inside
        return None, edit.end + inside - len(edit.text)


def _start(edit: Replacement | None, inside: int) -> int:
    if edit is None:
        return inside
    return edit.start if edit.at is None else min(edit.at[inside:])


def _end(edit: Replacement | None, inside: int) -> int:
    if edit is None:
        return inside + 1
    return edit.end if edit.at is None else max(edit.at[: inside + 1]) + 1
