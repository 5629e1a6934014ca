"""How often the guards of erasures have fired, counted from verdicts as they are recorded."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from guard.certificate import Fired
from guard.config.schema import Config
from guard.verdict import Verdict
from server.erasures.record import Live, Record


class Firings:
    """Counts by erasure and state. All methods may be called from any thread."""

    def __init__(self, config: Config) -> None:
        # under these policies guards in force only observe, too
        self._observing = {n for n, policy in config.policies.items() if policy.action == "observe"}
        self._lock = threading.Lock()
        self._counts: dict[str, dict[Live, Fired]] = {}
        self._states: dict[str, Live] = {}
        self._entries: dict[tuple[str, str], str] = {}

    def follow(self, record: Record) -> None:
        """As `begin`, where requests carry the guards of a record."""
        if record.state == "shadow" or record.state == "in force":
            listed = record.listed
            entry = (listed.list, listed.concept) if listed else None
            self.begin(record.id, record.state, record.fired, entry)

    def begin(
        self,
        erasure: str,
        state: Live,
        fired: Mapping[Live, Fired],
        entry: tuple[str, str] | None = None,
    ) -> None:
        """The guards of an erasure are carried in this state, or its `entry` of a list, which
        verdicts have as guard and concept; `fired` is what was counted before, where nothing was
        since the start."""
        with self._lock:
            if entry is not None:
                self._entries[entry] = erasure
            self._counts.setdefault(erasure, {**fired})
            self._states[erasure] = state

    def of(self, erasure: str) -> dict[Live, Fired] | None:
        """The counts, None for an erasure that has not begun."""
        with self._lock:
            counts = self._counts.get(erasure)
            return None if counts is None else {**counts}

    def count(self, verdict: Verdict) -> None:
        """Count the verdict of a finished request."""
        fired: dict[tuple[str, Live], list[str]] = {}
        with self._lock:
            for guard in verdict.guards:
                erasure = self._entries.get((guard.guard, guard.concept))
                erasure = erasure or guard.guard.partition("/")[0]
                if guard.fired and erasure in self._counts:
                    state = self._state(erasure, verdict.policy, guard.action)
                    fired.setdefault((erasure, state), []).append(guard.guard)
            for (erasure, state), names in fired.items():
                before = self._counts[erasure].get(state, Fired())
                guards = dict(before.guards)
                for name in names:
                    guards[name] = guards.get(name, 0) + 1
                after = Fired(requests=before.requests + 1, guards=guards)
                self._counts[erasure] = self._counts[erasure] | {state: after}

    def _state(self, erasure: str, policy: str, action: str) -> Live:
        """The state in which a guard has acted, whatever that of the erasure is now: requests keep
        the plan with which they came."""
        if action != "observe":
            return "in force"
        return self._states[erasure] if policy in self._observing else "shadow"
