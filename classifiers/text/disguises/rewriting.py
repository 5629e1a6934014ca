"""A text with some of its runs written anew, and where each character of it came from."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Replacement:
    """`text` stands in the place of source[start:end].

    `at` says from where in the source each of its characters came; without it each stands for the
    whole run, which can only be cut out as one.
    """

    start: int
    end: int
    text: str
    at: Sequence[int] | None = None


class Rewritten:
    """The source with `edits` made, which must be sorted and must not overlap."""

    def __init__(self, source: str, edits: Sequence[Replacement]) -> None:
        parts: list[str] = []
        self._edits = edits
        self._begins: list[int] = []
        length = done = 0
        for edit in edits:
            between = source[done : edit.start]
            self._begins.append(length + len(between))
            parts += between, edit.text
            length += len(between) + len(edit.text)
            done = edit.end
        parts.append(source[done:])
        self.text = "".join(parts)

    def span(self, start: int, end: int) -> tuple[int, int]:
        """Where `text[start:end]`, which is not empty, came from in the source.

        Where letters changed their order, the least stretch that holds them all.
        """
        first, in_first = self._place(start)
        last, in_last = self._place(end - 1)
        if first is not None and first is last and first.at is not None:
            ends = first.at[in_first], first.at[in_last]
            return min(ends), max(ends) + 1
        return _from(first, in_first), _until(last, in_last)

    def _place(self, position: int) -> tuple[Replacement | None, int]:
        # The edit it is in, and where in it; without one, where it is in the source.
        index = bisect_right(self._begins, position) - 1
        if index < 0:
            return None, position
        edit, inside = self._edits[index], position - self._begins[index]
        if inside < len(edit.text):
            return edit, inside
        return None, edit.end + inside - len(edit.text)


def _from(edit: Replacement | None, inside: int) -> int:
    if edit is None:
        return inside
    return edit.start if edit.at is None else min(edit.at[inside:])


def _until(edit: Replacement | None, inside: int) -> int:
    if edit is None:
        return inside + 1
    return edit.end if edit.at is None else max(edit.at[: inside + 1]) + 1
