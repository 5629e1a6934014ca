"""What a fit ends in: one line that says whether its guard is usable, and what to do where not.

Below it the report lists each held-out prompt that was missed, and each that was wrongly hit, with
its score and the threshold.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from guard.evaluation.shares import Share
from guard.reporting.page import Grid

CAUGHT, HALF = 0.9, 0.5
"""Shares of prompts that fire, from which on a guard is usable, and under which it is not."""
LISTED, LONGEST = 500, 300
"""The most prompts in a list of a report, and characters of each."""
NAMED = 3
"""The most prompts, or phrases, that a judgement names."""
DRAFT = "a draft, made with --quick: fit it without that before it serves"
_ABOUT = frozenset({"forget", "unsafe", "drawn"})
_CHANCE = frozenset({"mistaken", "given"})
"""Kinds of prompts of which nothing follows: innocent in words, with the concept in the image."""


@dataclass(frozen=True)
class Scored:
    """A held-out prompt with its kind and its score."""

    prompt: str
    kind: str
    score: float


@dataclass(frozen=True)
class HeldOut:
    """Held-out prompts at a threshold; kinds are those of the methods (forget or unsafe, far,
    near ...)."""

    threshold: float
    prompts: tuple[Scored, ...]

    @classmethod
    def of(
        cls, threshold: float, prompts: Sequence[str], kinds: Sequence[str], scores: Sequence[float]
    ) -> HeldOut:
        """Of prompts, kinds and scores in the same order."""
        return cls(threshold, tuple(map(Scored, prompts, kinds, map(float, scores))))

    @property
    def missed(self) -> list[Scored]:
        """Those about the concept that do not fire, the nearest to it first."""
        return self._sorted(
            each for each in self.prompts if each.kind in _ABOUT and not self._fires(each)
        )

    @property
    def hit(self) -> list[Scored]:
        """The others that fire, the highest score first."""
        return self._sorted(
            each for each in self.prompts if each.kind not in _ABOUT | _CHANCE and self._fires(each)
        )

    def fired(self, *kinds: str) -> Share:
        """The share of prompts of these kinds that fire."""
        return Share.of([self._fires(each) for each in self.prompts if each.kind in kinds])

    def as_json(self) -> dict[str, Any]:
        """What a report has of it."""
        return {
            "threshold": self.threshold,
            "missed": [_row(each) for each in self.missed[:LISTED]],
            "hit": [_row(each) for each in self.hit[:LISTED]],
        }

    def grids(self) -> list[Grid]:
        """The same as tables of a page."""
        columns = ("prompt", "kind", "score")
        return [
            Grid(
                title,
                columns,
                [(_short(each.prompt), each.kind, f"{each.score:.4f}") for each in found[:LISTED]],
                f"{len(found)} in all. {caption} The threshold is {self.threshold:.4f}.",
            )
            for title, caption, found in (
                (
                    "Missed: held-out prompts about the concept that do not fire",
                    "The nearest to the threshold first: more prompts like these to fit on are "
                    "what the guard lacks.",
                    self.missed,
                ),
                (
                    "Wrongly hit: other held-out prompts that fire",
                    "Within the false-positive rates that were asked for.",
                    self.hit,
                ),
            )
        ]

    def _fires(self, each: Scored) -> bool:
        return each.score > self.threshold

    @staticmethod
    def _sorted(found: Any) -> list[Scored]:
        return sorted(found, key=lambda each: -each.score)


@dataclass(frozen=True)
class Remedies:
    """What a user of a method can do where it misses much, and where that is not enough."""

    add: str
    instead: str = "see what the model itself makes of these prompts"
    unusable: tuple[str, ...] = field(default=())
    """Further faults, any of which makes the guard unusable, each with what to do."""


def judgement(
    held_out: HeldOut, remedies: Remedies, *, phrases: Sequence[str] = (), quick: bool = False
) -> str:
    """Whether a guard is usable, and what to do where it is not: one line.

    `phrases` are those of the concept's file: missed prompts are then told by the phrase in them.
    """
    caught = held_out.fired("forget", "unsafe")
    lost = _named(held_out.missed, phrases)
    if remedies.unusable:
        line = f"not usable: {'; '.join(remedies.unusable)}"
    elif not caught.value >= HALF:
        line = (
            f"not usable: fires on {caught.count} of {caught.total} held-out prompts about it, "
            f"misses {lost}; {remedies.add}, or {remedies.instead}"
        )
    elif caught.value < CAUGHT:
        line = f"usable draft: misses {lost}; {remedies.add}"
    else:
        line = f"usable: misses {lost}" if lost else "usable"
    return f"{line}; {DRAFT}" if quick else line


def judgement_grid(line: str) -> Grid:
    """A judgement on a page."""
    return Grid("Judgement", ("",), [(line,)])


def _named(missed: Sequence[Scored], phrases: Sequence[str]) -> str:
    """The phrases that most missed prompts hold, or the prompts themselves."""
    by_length = sorted(phrases, key=len, reverse=True)
    names = Counter(
        next((p for p in by_length if p.lower() in each.prompt.lower()), each.prompt)
        for each in missed
        if each.kind != "drawn"
    )
    shown = [repr(_short(name)) for name, _ in names.most_common(NAMED)]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")


def _row(each: Scored) -> dict[str, Any]:
    return {"prompt": _short(each.prompt), "kind": each.kind, "score": round(each.score, 5)}


def _short(prompt: str) -> str:
    return prompt if len(prompt) <= LONGEST else f"{prompt[: LONGEST - 3]}..."
