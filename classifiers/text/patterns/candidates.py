"""Candidates that expressions find, and what a judge makes of them.

An expression (RE2) is the fast first look; where a form alone does not tell, a judge decides: with
a library that knows the numbers of a country, and by what stands beside the candidate. A judge is a
function of the view `Candidate.text` from `LOOKBACK` characters before the candidate to one
character behind what the expression matches, and of nothing else: so a stream is read as its whole.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple

from classifiers.text.disguises.views import STEPS

LOOKBACK: Final = 64
"""Characters before a candidate that a judge may read."""


class Candidate(NamedTuple):
    """text[start:end] is what the group `value` of an expression has matched."""

    text: str
    start: int
    end: int

    @property
    def value(self) -> str:
        """What was matched."""
        return self.text[self.start : self.end]

    @property
    def before(self) -> str:
        """What stands before it, up to LOOKBACK characters."""
        return self.text[max(0, self.start - LOOKBACK) : self.start]

    @property
    def following(self) -> str:
        """The character behind it; the end of a text has none."""
        return self.text[self.end : self.end + 1]

    def part(self, start: int, end: int) -> Candidate:
        """The part value[start:end] as a candidate."""
        return Candidate(self.text, self.start + start, self.start + end)

    def is_(self, label: str, confidence: float = 1.0, country: str | None = None) -> Finding:
        """The finding that all of it is a `label`."""
        return Finding(self.start, self.end, label, confidence, country)


@dataclass(frozen=True, slots=True)
class Finding:
    """text[start:end] of a view is a `label`.

    `confidence` is 1 where a check digit, a reserved form or a label beside it says so, less where
    the form alone does. `country` is the ISO 3166 code of the country that issues it, if known.
    """

    start: int
    end: int
    label: str
    confidence: float = 1.0
    country: str | None = None


Judge = Callable[[Candidate], Finding | None]


@dataclass(frozen=True, slots=True)
class Expression:
    """An expression with the labels of its findings.

    Where there is no judge, every candidate is a finding of the only label. `longest` is the most
    characters of a match that a stream waits for. A refused candidate is read again from its next
    word on, unless it `skips`: that is for expressions without a bound. `raw`: letters keep their
    case, lines their ends.
    """

    labels: frozenset[str]
    pattern: str
    judge: Judge | None
    longest: int
    raw: bool = False
    skips: bool = False
    views: frozenset[str] = STEPS

    def judged(self, candidate: Candidate) -> Finding | None:
        """What the candidate is."""
        if self.judge is None:
            (label,) = self.labels
            return candidate.is_(label)
        return self.judge(candidate)
