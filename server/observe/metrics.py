"""Prometheus metrics; verdicts are counted from the same objects that the audit log holds."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from http import HTTPStatus
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from guard.config.schema import Config
from guard.verdict import Done, Verdict
from server.services.interface import Service

_SCORES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.5, 2.0)
_STEPS = (1, 2, 3, 5, 8, 12, 20, 30, 50)
OTHER = "other"
"""The label of what the configuration does not know: clients must not make series."""
_STATUSES = frozenset({*map(int, HTTPStatus), 499})
_ACTIONS = frozenset(action for part in get_args(Done) for action in get_args(part))
_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)
_READ_SECONDS = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3)
MOST_PAIRS = 2000
"""Pairs of a guard, or a policy, and a tenant that have series of their own."""


class _ByTenant:
    """A histogram of seconds by one label and the tenant. Tenants that come behind MOST_PAIRS are
    counted together: a fleet of them must not fill a time-series database."""

    def __init__(self, histogram: Histogram) -> None:
        self._histogram = histogram
        self._series: dict[tuple[str, str], Histogram] = {}

    def observe(self, name: str, tenant: str, seconds: float) -> None:
        """Count `seconds` of `name`, which the configuration knows. From any thread."""
        pair = (name, tenant)
        if pair not in self._series and len(self._series) >= MOST_PAIRS:
            pair = (name, OTHER)
        series = self._series.get(pair)
        if series is None:
            series = self._series[pair] = self._histogram.labels(*pair)
        series.observe(seconds)


class VerdictMetrics:
    """Metrics of verdicts and guards. All methods may be called from any thread.

    Models and guards beside `models` and `guards` are counted as OTHER; None knows all.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        models: Collection[str] | None = None,
        guards: Collection[str] | None = None,
    ) -> None:
        self._models, self._guards = models, guards
        self._verdicts = Counter(
            "inference_guard_verdicts",
            "Verdicts by policy and outcome.",
            ["model", "policy", "outcome"],
            registry=registry,
        )
        self._fired = Counter(
            "inference_guard_fired",
            "Times that a guard fired, by what it did.",
            ["guard", "action"],
            registry=registry,
        )
        self._scores = Histogram(
            "inference_guard_score",
            "Scores of a guard, one for each request that it has read.",
            ["model", "guard"],
            buckets=_SCORES,
            registry=registry,
        )
        self._after = Histogram(
            "inference_guard_score_after",
            "Scores of a guard after it has refined the prompt.",
            ["model", "guard"],
            buckets=_SCORES,
            registry=registry,
        )
        self._steps = Histogram(
            "inference_guard_refinement_steps",
            "Steps that a guard took to refine a prompt.",
            ["model", "guard"],
            buckets=_STEPS,
            registry=registry,
        )
        self._shadows = Counter(
            "inference_guard_shadow_verdicts",
            "Requests by their outcome, and by what it would have been under the policy's shadow.",
            ["policy", "outcome", "shadow"],
            registry=registry,
        )
        self._rows = _ByTenant(
            Histogram(
                "inference_guard_row_seconds",
                "Wall time of a request's row, from its admission to its end.",
                ["policy", "tenant"],
                buckets=_SECONDS,
                registry=registry,
            )
        )
        self._reading = _ByTenant(
            Histogram(
                "inference_guard_guard_seconds",
                "Wall time until a screen's reading of texts or images was there. Screens that are "
                "read in one pass count all of it; guards inside a model have none.",
                ["guard", "tenant"],
                buckets=_READ_SECONDS,
                registry=registry,
            )
        )
        self._failed = Counter(
            "inference_guard_guard_failures",
            "Times that a guard could not be applied.",
            ["guard"],
            registry=registry,
        )
        self._audit_failures = Counter(
            "inference_guard_audit_failures",
            "Verdicts that could not be written to the audit log.",
            registry=registry,
        )

    def count(self, verdict: Verdict, tenant: str = "") -> None:
        """Count the verdict of one finished request of a tenant, "" on a server without keys."""
        model = _known(verdict.model, self._models) if verdict.model else ""
        self._verdicts.labels(model, verdict.policy, verdict.outcome).inc()
        self._rows.observe(verdict.policy, tenant, verdict.elapsed_ms / 1000)
        for guard in verdict.guards:
            # in a proxy guards may be those of the upstream, whose values can be anything
            name = _known(guard.guard, self._guards)
            if isinstance(guard.score, int | float):
                self._scores.labels(model, name).observe(guard.score)
            if isinstance(guard.after, int | float):
                self._after.labels(model, name).observe(guard.after)
            if isinstance(guard.steps, int | float) and guard.steps:
                self._steps.labels(model, name).observe(guard.steps)
            if guard.fired:
                self._fired.labels(name, _known(guard.action, _ACTIONS)).inc()
            if guard.error is not None:
                self._failed.labels(name).inc()

    def count_shadow(self, verdict: Verdict, shadow: str) -> None:
        """Count what the outcome of a request would have been under the shadow of its policy."""
        self._shadows.labels(verdict.policy, verdict.outcome, shadow).inc()

    def time_reading(self, guards: Iterable[str], tenant: str, seconds: float) -> None:
        """Screens of these names have read together for so long."""
        for guard in guards:
            self._reading.observe(guard, tenant, seconds)

    def count_audit_failure(self) -> None:
        """Count a verdict that could not be written to the audit log."""
        self._audit_failures.inc()


def _known(name: object, names: Collection[str] | None) -> str:
    """The label of a name; `names` None knows all."""
    is_known = isinstance(name, str) and (names is None or name in names)
    return str(name) if is_known else OTHER


class Metrics:
    """All metrics of one app, in a registry of its own. All methods may be called from any
    thread.

    `config` knows the models and guards that are labels; without it those of services are.
    """

    def __init__(self, config: Config | None = None) -> None:
        self.registry = CollectorRegistry()
        self._models = _models(config) if config is not None else set()
        self.verdicts = VerdictMetrics(
            self.registry, self._models, _guards(config) if config is not None else None
        )
        self._requests = Counter(
            "inference_guard_requests",
            "HTTP requests by route and status; 499 is a client that disconnected first.",
            ["path", "status"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "inference_guard_request_seconds",
            "Wall time of HTTP requests, streams to their end.",
            ["path"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._tokens = Counter(
            "inference_guard_tokens",
            "Tokens in the usage of answered requests, by kind (prompt, completion).",
            ["model", "kind"],
            registry=self.registry,
        )
        self._images = Counter(
            "inference_guard_pictures",
            "Images in answered requests.",
            ["model"],
            registry=self.registry,
        )
        self._queued = Gauge(
            "inference_guard_queued_rows",
            "Rows waiting for a place in the batch.",
            ["model"],
            registry=self.registry,
        )
        self._ready = Gauge(
            "inference_guard_ready",
            "1 while the model takes requests.",
            ["model"],
            registry=self.registry,
        )

    def add_services(self, services: Mapping[str, Service]) -> None:
        """Read queue length and readiness from each service whenever the metrics are rendered."""
        self._models.update(services)
        for name, service in services.items():
            self._queued.labels(name).set_function(service.queued)
            self._ready.labels(name).set_function(service.ready)

    def observe_request(self, path: str, status: int, seconds: float) -> None:
        """Count one HTTP exchange of `seconds`; `path` is the route's template, never the raw
        URL."""
        code = str(int(status)) if status in _STATUSES else f"{status // 100}xx"
        self._requests.labels(path, code).inc()
        self._seconds.labels(path).observe(seconds)

    def count_tokens(self, model: str, prompt: int, completion: int) -> None:
        self._tokens.labels(model, "prompt").inc(prompt)
        self._tokens.labels(model, "completion").inc(completion)

    def count_images(self, model: str, count: int) -> None:
        self._images.labels(model).inc(count)

    def render(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)


def _models(config: Config) -> set[str]:
    """Every model that a configuration names."""
    routed = {policy.screen.model or "" for policy in config.policies.values()}
    upstream = {name for upstream in config.upstreams for name in upstream.models}
    return {*config.default_policies, *upstream, *routed}


def _guards(config: Config) -> frozenset[str]:
    names = [guard.name for guard in config.guards]
    return frozenset([*names, *(patterns.name for patterns in config.patterns)])
