"""Metrics of what replicas share."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from guard.replicas.limits import SharedLedger


class SharedLimitMetrics(Collector):
    """Reads a ledger whenever the metrics are rendered."""

    def __init__(self, ledger: SharedLedger) -> None:
        self._ledger = ledger

    def collect(self) -> Iterator[Metric]:
        ledger = self._ledger
        yield GaugeMetricFamily(
            "inference_guard_shared_limits_up",
            "1 while the store in which replicas count limits together answers.",
            value=float(ledger.is_up),
        )
        yield CounterMetricFamily(
            "inference_guard_shared_limits_failures",
            "Times that the store did not answer.",
            value=ledger.failures,
        )
        unshared = CounterMetricFamily(
            "inference_guard_unshared_requests",
            "Requests of keys with limits while the store did not answer: refused, or counted by "
            "this replica alone (local).",
            labels=["result"],
        )
        for result, count in ledger.unshared.items():
            unshared.add_metric([result], count)
        yield unshared


def register_shared_limits(ledger: SharedLedger, registry: CollectorRegistry) -> None:
    """Add the metrics of a ledger."""
    registry.register(SharedLimitMetrics(ledger))
