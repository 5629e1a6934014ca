"""Metrics of the upstreams."""

from __future__ import annotations

from functools import partial

from prometheus_client import CollectorRegistry, Gauge

from server.proxy.forwarding.upstreams import Upstream, Upstreams


def register_upstream_metrics(upstreams: Upstreams, registry: CollectorRegistry) -> None:
    """Add gauges that read the state of each upstream when the metrics are read."""
    ready = Gauge(
        "inference_guard_upstream_ready",
        "1 while the upstream gets requests: well, and its breaker closed.",
        ["upstream"],
        registry=registry,
    )
    in_flight = Gauge(
        "inference_guard_upstream_requests",
        "Requests that are with the upstream.",
        ["upstream"],
        registry=registry,
    )
    for upstream in upstreams.all:
        ready.labels(upstream.name).set_function(partial(_ready, upstream))
        in_flight.labels(upstream.name).set_function(partial(_in_flight, upstream))


def _ready(upstream: Upstream) -> float:
    return float(upstream.ready)


def _in_flight(upstream: Upstream) -> float:
    return float(upstream.in_flight)
