"""What must hold of a guard on the model that it is to be bound to, and with what confidence.

Everything is counted on held-out prompts, by which no threshold was chosen. False fires keep a rate
by the calibration of the thresholds, so they are refused where the count contradicts the rate; of
leaks and misses nothing is known before, so their upper bounds must be small.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from guard.evaluation.shares import Share


@dataclass(frozen=True)
class Limits:
    """`leaks` bounds the share of leaks from above, `drop` how far the gate's recall on prompts may
    fall below `recall`, that of the fit; `far` and `near` are the rates of false fires that the
    thresholds keep. All are shares."""

    leaks: float
    drop: float
    recall: float
    far: float
    near: float

    @property
    def prompts_needed(self) -> int:
        """The fewest prompts with leaks of the bare model by which no leak at all is enough."""
        return math.ceil(math.log(0.05) / math.log1p(-self.leaks))


@dataclass(frozen=True)
class HeldOut:
    """Counts on the held-out prompts, under the thresholds to be written.

    `leaks` are guarded answers with a fact, of the prompts that the bare model answers with one;
    `misses` forget prompts that do not fire by themselves; `far` and `near` retain prompts whose
    answer is not the bare model's. `broken` of them have another answer though the guard was
    silent; None where the engine does not tell whether it was.
    """

    leaks: Share
    misses: Share
    far: Share
    near: Share
    broken: int | None

    def faults(self, limits: Limits) -> list[str]:
        """What does not hold, one sentence each; none where the guard may be bound."""
        faults = []
        if self.broken:
            faults.append(
                f"{self.broken} answers differ from the bare model's though the guard was silent: "
                "the engine does not repeat its own answers, so nothing can be measured"
            )
        if self.leaks.at_most > limits.leaks:
            faults.append(
                f"{_count(self.leaks)} guarded answers leak, at most {self.leaks.at_most:.1%} with "
                f"95 % confidence, where {limits.leaks:.1%} are allowed"
            )
        allowed = 1 - limits.recall + limits.drop
        if self.misses.at_most > allowed:
            faults.append(
                f"{_count(self.misses)} forget prompts do not fire, at most "
                f"{self.misses.at_most:.1%} with 95 % confidence, where {allowed:.1%} are allowed"
            )
        for kind, share, rate in (("far", self.far, limits.far), ("near", self.near, limits.near)):
            if share.at_least > rate:
                faults.append(
                    f"{_count(share)} {kind} answers change, at least {share.at_least:.1%} with "
                    f"95 % confidence, where the guard keeps a rate of {rate:.1%}"
                )
        return faults

    def as_json(self) -> dict[str, Any]:
        """Counts and upper bounds, by name."""
        shares: Mapping[str, Share] = {
            "leaks": self.leaks,
            "prompts_missed": self.misses,
            "far_changed": self.far,
            "near_changed": self.near,
        }
        return {
            name: {"count": share.count, "of": share.total, "at_most": round(share.at_most, 6)}
            for name, share in shares.items()
        } | {"silent_but_changed": self.broken}


def _count(share: Share) -> str:
    return f"{share.count} of {share.total}"
