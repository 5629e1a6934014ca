"""What happened to one request: the same numbers in the response, the audit log and the metrics."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

Outcome = Literal[
    "pass", "flagged", "steered", "overlaid", "refined", "perturbed", "blocked", "error"
]
"""From the least to the gravest."""

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
    is `after` them; the latter also over what share of the picture it has written (`area`), and how
    far the likeliest place stood out there (`peak`, in deviations). `error` says why the guard
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


@dataclass(frozen=True, slots=True)
class Verdict:
    """All guards on one request; `elapsed_ms` is wall time from admission to its end."""

    request_id: str
    model: str
    policy: str
    outcome: Outcome
    guards: tuple[GuardVerdict, ...]
    elapsed_ms: float

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready form: the `guard` object of a response and the body of an audit line."""
        return asdict(self)
