"""Which of the last requests would be decided otherwise under other settings of a policy."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from guard.policies.decisions import Decision, Decisions
from guard.policies.readings import reads_alike
from guard.policies.recorded import Recorded
from guard.verdict import GuardVerdict

_UNTOUCHED = frozenset({"pass", "flagged"})
"""Outcomes after which all of request and answer has been read, as the model made it."""


@dataclass(slots=True)
class Replay:
    """The result: `changed` requests, of which the newest are in `requests`. Those that nothing
    can be said about are in `reasons`, by why."""

    policy: str
    read: int = 0
    replayed: int = 0
    changed: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    transitions: Counter[tuple[str, str]] = field(default_factory=Counter)
    requests: list[dict[str, Any]] = field(default_factory=list)
    fired: dict[str, list[int]] = field(default_factory=dict)
    elapsed_ms: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """The JSON-ready form."""
        return {
            "object": "policy.replay",
            "policy": self.policy,
            "read": self.read,
            "replayed": self.replayed,
            "changed": self.changed,
            "unchanged": self.replayed - self.changed,
            "not_replayed": self.read - self.replayed,
            "reasons": [
                {"reason": reason, "count": count} for reason, count in self.reasons.most_common()
            ],
            "transitions": [
                {"from": before, "to": after, "count": count}
                for (before, after), count in self.transitions.most_common()
            ],
            "guards": [
                {"guard": guard, "read": read, "fired_before": before, "fired_after": after}
                for guard, (read, before, after) in self.fired.items()
            ],
            "requests": self.requests,
            "elapsed_ms": round(self.elapsed_ms, 1),
        }


def replay(
    requests: Sequence[Recorded],
    policy: str,
    before: Decisions,
    after: Decisions,
    *,
    show: int,
    since: Mapping[str, float] | None = None,
    from_text: Mapping[int, Recorded] | None = None,
) -> Replay:
    """Decide `requests` anew under `policy` of `after`; they were decided under `before`.

    `since` says from when on the policies that they were decided under have read what they read
    under `before`, as `same_since` gives it. `from_text` has those, by their index, whose texts
    were read again. At most `show` of the changed ones are told in full.
    """
    started = time.perf_counter()
    result = Replay(policy, read=len(requests))
    reread = from_text or {}
    alike = {
        name: reads_alike(settings, after.config.policy(policy))
        for name, settings in before.config.policies.items()
    }
    for index, request in enumerate(requests):
        is_reread = index in reread
        why = None
        if request.outcome == "error":
            why = "the request ended in an error"
        elif not is_reread and not alike.get(request.policy, True):
            why = "the screens would read other parts of it, and its text was not kept"
        elif not is_reread and since is not None and request.began < since.get(request.policy, 0.0):
            why = "the screens read other parts of it then, and its text was not kept"
        else:
            decided = after.decide(reread.get(index, request), policy, before)
            if decided.missing and decided.outcome != "blocked":
                why = f"no score of the guard {decided.missing[0]!r} was recorded"
        if why is not None:
            result.reasons[why] += 1
            continue
        result.replayed += 1
        _count_fired(result, request, decided)
        if _is_changed(request, decided):
            result.changed += 1
            result.transitions[request.outcome, decided.outcome] += 1
            if len(result.requests) < show:
                result.requests.append(_told(request, decided, is_reread=is_reread))
    result.elapsed_ms = 1000 * (time.perf_counter() - started)
    return result


def _is_changed(request: Recorded, decided: Decision) -> bool:
    acts = frozenset(
        (name, str(known.get("action")))
        for name, known in request.guards.items()
        if known.get("fired") and known.get("action") not in {"none", "observe"}
    )
    return request.outcome != decided.outcome or acts != decided.acts


def _count_fired(result: Replay, request: Recorded, decided: Decision) -> None:
    for guard in decided.guards:
        if guard.score is None:
            continue
        counts = result.fired.setdefault(guard.guard, [0, 0, 0])
        counts[0] += 1
        counts[1] += bool(request.guards.get(guard.guard, {}).get("fired"))
        counts[2] += guard.fired


def _told(request: Recorded, decided: Decision, *, is_reread: bool) -> dict[str, Any]:
    after = {guard.guard: guard for guard in decided.guards}
    names = dict.fromkeys([*request.guards, *after])
    return {
        "request_id": request.request_id,
        "time": request.time,
        "tenant": request.tenant,
        "model": request.model,
        "policy": request.policy,
        "from": request.outcome,
        "to": decided.outcome,
        "source": "text" if is_reread else "scores",
        "complete": request.outcome in _UNTOUCHED,
        "guards": list(_guards(names, request, after)),
    }


def _guards(
    names: Iterable[str], request: Recorded, after: Mapping[str, GuardVerdict]
) -> Iterable[dict[str, Any]]:
    for name in names:
        before, now = request.guards.get(name), after.get(name)
        yield {
            "guard": name,
            "score": now.score if now is not None else before and before.get("score"),
            "before": before and {key: before.get(key) for key in _FACTS},
            "after": now and {key: getattr(now, key) for key in _FACTS},
        }


_FACTS = ("threshold", "fired", "action")
