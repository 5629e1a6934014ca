"""Labels: words that name what stands behind them, in the languages that people write."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import re2

from classifiers.text.disguises.folding import fold
from classifiers.text.patterns.candidates import Candidate

GAP: Final = 30
"""The most characters between a label and what it names."""


_SHORT: Final = 4


class Labels:
    """Labels of one kind.

    A label begins a word and may go on (`phone_number`), a short one with other signs than letters
    alone. Between it and what it names are no digits, but for one that counts (`phone 2: ...`).
    """

    def __init__(self, *labels: str, gap: int = GAP) -> None:
        self._behind = _compiled(labels, gap)

    def before(self, candidate: Candidate) -> str | None:
        """The label beside a candidate; None where there is none."""
        found = self._behind.search(candidate.before.lower())
        return None if found is None else str(found[1])


def folded(labels: Iterable[str]) -> list[str]:
    """The labels as they stand in a folded view, without repetitions."""
    return sorted({fold(label).text for label in labels}, key=lambda label: (-len(label), label))


def form(label: str) -> str:
    """An expression of a folded label: its words may be joined as in names of variables."""
    words = "[ _-]{0,2}".join(map(re2.escape, label.split(" ")))
    is_short = len(label) <= _SHORT and label.isascii()
    return rf"{words}(?:\b|_)" if is_short and label.isalpha() else words


def _compiled(labels: Iterable[str], gap: int) -> Any:
    either = "|".join(map(form, folded(labels)))
    begin = r"(?:^|[^\pL]|\p{Han}|\p{Hangul}|\p{Hiragana})"
    return re2.compile(rf"{begin}({either})[^0-9]{{0,{gap}}}(?:[0-9][^0-9]{{1,4}})?$")
