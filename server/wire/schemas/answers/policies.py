"""Versions of policies, what differs between them, and replays."""

from __future__ import annotations

from typing import Any, Literal

from typing_extensions import TypedDict

from guard.policies.versions import Act
from guard.verdict import Outcome


class PolicyVersion(TypedDict):
    """`settings` null: the policy was removed. `time` is in RFC 3339."""

    object: Literal["policy.version"]
    policy: str
    version: int
    act: Act
    by: str
    why: str
    time: str
    settings: dict[str, Any] | None
    current: bool


class PolicyInForce(PolicyVersion):
    """`shadow` are the settings of its shadow."""

    shadow: dict[str, Any] | None


class PolicyVersionPage(TypedDict):
    """The newest first."""

    object: Literal["list"]
    data: list[PolicyVersion]
    has_more: bool


class SettingChange(TypedDict):
    field: str
    before: Any
    after: Any


# `from` is no name of a member in Python
PolicyDiff = TypedDict(
    "PolicyDiff",
    {
        "object": Literal["policy.diff"],
        "policy": str,
        "from": int | None,
        "to": int | None,
        "changes": list[SettingChange],
        "weaker": bool | None,
    },
)


class Reason(TypedDict):
    reason: str
    count: int


Transition = TypedDict("Transition", {"from": Outcome, "to": Outcome, "count": int})


class GuardCounts(TypedDict):
    guard: str
    read: int
    fired_before: int
    fired_after: int


class GuardFacts(TypedDict):
    threshold: float
    fired: bool
    action: str


class ReplayedGuard(TypedDict):
    guard: str
    score: float | None
    before: GuardFacts | None
    after: GuardFacts | None


ChangedRequest = TypedDict(
    "ChangedRequest",
    {
        "request_id": str,
        "time": str,
        "tenant": str,
        "model": str,
        "policy": str,
        "from": Outcome,
        "to": Outcome,
        "source": Literal["scores", "text"],
        "complete": bool,
        "guards": list[ReplayedGuard],
    },
)


class PolicyReplay(TypedDict):
    """`requests` are those that would be decided otherwise, `reasons` why others cannot be decided
    again. One that is not `complete` had been acted on: what would have followed is unknown."""

    object: Literal["policy.replay"]
    policy: str
    read: int
    replayed: int
    changed: int
    unchanged: int
    not_replayed: int
    reasons: list[Reason]
    transitions: list[Transition]
    guards: list[GuardCounts]
    requests: list[ChangedRequest]
    elapsed_ms: float


class GuardScores(TypedDict):
    """`threshold` is the one of now."""

    guard: str
    threshold: float | None
    scores: list[float]


class PolicyScores(TypedDict):
    object: Literal["policy.scores"]
    policy: str
    read: int
    guards: list[GuardScores]
