"""Metrics of policies that change, and of those in shadow."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge

from guard.policies.versions import Change


class PolicyMetrics:
    """All methods may be called from any thread."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._changes = Counter(
            "inference_guard_policy_changes",
            "Changes of policies that this server has made, by what was done.",
            ["policy", "act"],
            registry=registry,
        )
        self._refusals = Counter(
            "inference_guard_policy_refusals",
            "Policies that could not be put in force here, by where they came from.",
            ["source"],
            registry=registry,
        )
        self._revision = Gauge(
            "inference_guard_policy_revision",
            "The number of the change of policies that is in force here.",
            registry=registry,
        )

    def count_change(self, change: Change) -> None:
        self._changes.labels(change.policy, change.act).inc()

    def count_refusal(self, source: str) -> None:
        """`source` is "file" or "store"."""
        self._refusals.labels(source).inc()

    def set_revision(self, revision: int) -> None:
        self._revision.set(revision)
