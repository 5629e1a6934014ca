"""The answers of two engines to the same requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_TOLD = 300
_NAMES = ("Unsupported:", "ConfigError:", "Error:", "Exception:")


@dataclass(frozen=True)
class Comparison:
    """Of `compared` requests: `guarded` and `plain` ones that have other tokens, requests whose
    `verdicts` differ, and the largest difference of a `score` relative to it."""

    compared: int
    guarded: int
    plain: int
    verdicts: int
    score: float


def compare(
    requests: Sequence[Mapping[str, Any]],
    expected: Sequence[Mapping[str, Any]],
    came: Sequence[Mapping[str, Any]],
) -> Comparison:
    """Aborted requests are left out: when they end is a matter of chance."""
    compared = guarded = plain = verdicts = 0
    score = 0.0
    for request, one, other in zip(requests, expected, came, strict=True):
        if "aborted" in request:
            continue
        compared += 1
        if one.get("tokens") != other.get("tokens") or one.get("finish") != other.get("finish"):
            if request.get("policy") in (None, "none"):
                plain += 1
            else:
                guarded += 1
        before, after = _verdict(one), _verdict(other)
        if before != after:
            verdicts += 1
        else:
            score = max(score, _difference(one, other))
    return Comparison(compared, guarded, plain, verdicts, score)


def _verdict(answer: Mapping[str, Any]) -> Any:
    """What must be the same to the letter; None of an answer without."""
    if not (verdict := answer.get("guard")):
        return answer.get("error")
    guards = [
        (each["guard"], each["fired"], each["action"], each["position"], each.get("error"))
        for each in verdict["guards"]
    ]
    return verdict["outcome"], guards


def _difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    """The largest of a score, relative to it; of the same guards."""
    if not one.get("guard"):
        return 0.0
    pairs = zip(one["guard"]["guards"], other["guard"]["guards"], strict=True)
    scores = [(a["score"], b["score"]) for a, b in pairs if a["score"] is not None]
    return max((abs(a - b) / max(abs(a), 1e-6) for a, b in scores), default=0.0)


def reason(told: str) -> str:
    """Why an engine has not run: the last line of its output that names an error."""
    lines = [line.strip() for line in told.splitlines() if line.strip()]
    named = [line for line in lines if any(name in line for name in _NAMES)]
    return (named or lines or ["it has printed nothing"])[-1][-_TOLD:]
