"""The verdict on one request: the same in the response, the audit log and the metrics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, TypedDict, get_args

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
    "said",
    "blocked",
    "error",
]
"""The outcomes of a request, from the least to the most severe."""

Done = (
    Literal["none", "observe", "flag", "steer", "overlay", "refine", "perturb", "replace", "block"]
    | Literal["redact", "route", "policy", "say"]
)
"""The action that was taken when a guard fired; "none" also if there was nothing to do."""

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
    "say": "said",
    "block": "blocked",
}
"""The outcome of a request after each action."""

VerdictDetail = Literal["none", "outcome", "full"]
"""How much of a verdict a client is told; audit log and metrics always have all of it."""

_GRAVITY: tuple[Outcome, ...] = get_args(Outcome)


def gravest(outcomes: Iterable[Outcome]) -> Outcome:
    """The most severe outcome; "pass" if there is none."""
    return max(outcomes, key=_GRAVITY.index, default="pass")


MOST_FINDINGS = 16
"""Of a guard in a verdict: a list of the user's own may have any number of labels."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A kind of text that patterns have found: their label, the largest confidence of it, and the
    ISO 3166 code of the country that issues it, where that is known."""

    kind: str
    confidence: float
    country: str | None


@dataclass(frozen=True, slots=True)
class GuardVerdict:
    """One guard on one request.

    `score` is the guard's largest score, `threshold` the value it was compared with, and `position`
    where the guard fired: 0 for the prompt, n for the n-th generated token or the latents after n
    steps, None if it did not fire. `action` is the action that was taken. `steps` counts the steps
    of a guard that refines a prompt or writes to latents, and `after` is its score after these; for
    a guard of a language model it counts how often the answer went back. A guard of latents also
    has the share of the image that it has written (`area`) and the height of the evidence's maximum
    in deviations (`peak`). `place` is where a screen of text had its highest score
    ("messages[1].content", "choices[0]"), and `findings` are the kinds that its patterns have
    found anywhere, each once. `error` says why the guard could not be applied.
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
    findings: tuple[Finding, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The JSON-ready form."""
        body = {name: getattr(self, name) for name in _GUARD}
        body["findings"] = [
            {name: getattr(finding, name) for name in _FINDING} for finding in self.findings
        ]
        return body


@dataclass(frozen=True, slots=True)
class Verdict:
    """All guards on one request; `elapsed_ms` is the wall time from its admission to its end.

    `unscreened` is content that the policy's screens have not read: "images", or a path.
    """

    request_id: str
    model: str
    policy: str
    outcome: Outcome
    guards: tuple[GuardVerdict, ...]
    elapsed_ms: float
    unscreened: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The JSON-ready form: the `guard` object of a response and the body of an audit line."""
        body = {name: getattr(self, name) for name in _VERDICT}
        body["guards"] = [guard.as_dict() for guard in self.guards]
        body["unscreened"] = list(self.unscreened)
        return body


class Shadow(TypedDict):
    """What the shadow of its policy says of a request: the outcome, "unknown" where a guard of it
    has read nothing, and what each guard that fired would have done."""

    outcome: str
    guards: dict[str, str]


def shown(verdict: Mapping[str, Any], detail: VerdictDetail) -> dict[str, Any] | None:
    """The `guard` object for a client that is told `detail` of `verdict`, the form that `as_dict`
    gives. "outcome" leaves out guards, scores and thresholds; None: there is no such object."""
    if detail == "none":
        return None
    if detail == "outcome":
        return {name: verdict[name] for name in _OUTCOME if name in verdict}
    return dict(verdict)


# `asdict` copies deeply, which takes ten times as long, and every request needs this three times
_FINDING = tuple(field.name for field in fields(Finding))
_GUARD = tuple(field.name for field in fields(GuardVerdict))
_VERDICT = tuple(field.name for field in fields(Verdict))
_OUTCOME = ("request_id", "policy", "outcome")
