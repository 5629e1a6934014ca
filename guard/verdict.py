"""What happened to one request: the same numbers in the response, the audit log and the metrics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

Outcome = Literal[
    "pass",
    "flagged",
    "routed",
    "delegated",
    "steered",
    "overlaid",
    "refined",
    "perturbed",
    "redacted",
    "blocked",
    "error",
]
"""From the least to the gravest."""

Done = (
    Literal["none", "observe", "flag", "steer", "overlay", "refine", "perturb", "replace", "block"]
    | Literal["redact", "route", "policy"]
)
"""What was done where a guard fired; "none" also where there was nothing to do."""

OUTCOMES: Mapping[Done, Outcome] = {
    "none": "pass",
    "observe": "pass",
    "flag": "flagged",
    "steer": "steered",
    "overlay": "overlaid",
    "refine": "refined",
    "perturb": "perturbed",
    "redact": "redacted",
    "route": "routed",
    "policy": "delegated",
    "replace": "refined",
    "block": "blocked",
}
"""What a request is said to be after each of them."""

_GRAVITY: tuple[Outcome, ...] = get_args(Outcome)


def gravest(outcomes: Iterable[Outcome]) -> Outcome:
    """The one that speaks for all of them; "pass" where there is none."""
    return max(outcomes, key=_GRAVITY.index, default="pass")


@dataclass(frozen=True, slots=True)
class GuardVerdict:
    """One guard on one request.

    `score` is the largest value seen at the places where the guard looked, `threshold` the one it
    was compared with, `position` where it fired: 0 for the prompt, n for the n-th generated token
    or what n steps have drawn, None where it did not fire. `action` is what was done. A guard that
    refines a prompt, or writes to the latents, says how many `steps` that took, and what its score
    is `after` them; the latter also over what share of the image it has written (`area`), and how
    far the likeliest place stood out there (`peak`, in deviations). One that reads text says where
    its highest score was (`place`: "messages[1].content", "choices[0]"). `error` says why the guard
    could not be applied.
    """

    guard: str
    concept: str
    method: str
    score: float | None
    threshold: float
    fired: bool
    action: str
    position: int | None = None
    error: str | None = None
    steps: int = 0
    after: float | None = None
    area: float | None = None
    peak: float | None = None
    place: str | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """All guards on one request; `elapsed_ms` is wall time from admission to its end.

    `unscreened` is what no screen of text has read though its policy has some: "images", a path.
    """

    request_id: str
    model: str
    policy: str
    outcome: Outcome
    guards: tuple[GuardVerdict, ...]
    elapsed_ms: float
    unscreened: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready form: the `guard` object of a response and the body of an audit line."""
        told = {name: getattr(self, name) for name in _VERDICT}
        told["guards"] = [{name: getattr(each, name) for name in _GUARD} for each in self.guards]
        told["unscreened"] = list(self.unscreened)
        return told


# `asdict` copies deeply, which takes ten times as long; every request is told three times
_GUARD = tuple(each.name for each in fields(GuardVerdict))
_VERDICT = tuple(each.name for each in fields(Verdict))
