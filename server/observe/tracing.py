"""Spans of requests, by OpenTelemetry. No other module knows its names, or those of the conventions
for generative models (gen_ai.*).

A request is a span, the child of its client's where it sends `traceparent`. Below it lie what
screens read, requests to upstreams (which are sent `traceparent` in turn), the model's work on each
row, and below that each guard that fired. No span holds a text. Where spans go, and how many, is
told by OpenTelemetry's own environment variables (OTEL_EXPORTER_OTLP_ENDPOINT,
OTEL_TRACES_SAMPLER ...).
"""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING

from starlette.types import Scope

from guard.errors import ConfigError
from guard.verdict import Verdict

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span, SpanKind

SERVICE = "inference-guard"
PROPAGATED = frozenset({"traceparent", "tracestate"})
"""Headers that tell a server of its client's span."""
_OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/responses": "chat",
    "/v1/messages": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
    "/v1/images/generations": "image_generation",
    "/v1/images/edits": "image_generation",
}
_MOST_STAGES = 64
"""Of a request; a stream that is read piece by piece would have thousands."""
_MOST_KEPT = 8192
"""Requests whose verdicts still find their span: a row may end after its client has hung up."""


class Trace:
    """The spans of one request; this one makes none."""

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """A span while the body runs."""
        yield

    @contextmanager
    def upstream(self, name: str) -> Iterator[Mapping[str, str]]:
        """A span while another server works; gives the headers that tell it of that span, in place
        of the client's."""
        yield {}

    def end(self, status: int, route: str, policy: str | None, outcome: str | None) -> None:
        """The answer has been sent, or its client is gone."""


class Tracing:
    """Traces of requests; this one makes none."""

    def begin(self, scope: Scope, request_id: str) -> Trace:
        """The trace of a new request."""
        return Trace()

    def verdict(self, verdict: Verdict) -> None:
        """A row has ended with this verdict. May be called from any thread."""

    def close(self) -> None:
        """Send what has not been sent."""


OFF = Tracing()


def tracing_of(traces: bool) -> Tracing:
    """The tracing of a server, by its setting. Raises ConfigError without OpenTelemetry."""
    if not traces:
        return OFF
    needed = ("opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http.trace_exporter")
    if not all(_is_there(name) for name in needed):
        raise ConfigError(
            ["server.traces needs OpenTelemetry: pip install 'inference-guard[traces]'"]
        )
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OpenTelemetryTracing(OTLPSpanExporter())


def _is_there(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # a package above it is missing
        return False


class OpenTelemetryTracing(Tracing):
    """Traces that go to an exporter, in batches and beside the requests."""

    def __init__(self, exporter: SpanExporter) -> None:
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        name = os.environ.get("OTEL_SERVICE_NAME", SERVICE)
        self.provider: TracerProvider = TracerProvider(
            resource=Resource.create({SERVICE_NAME: name})
        )
        self.provider.add_span_processor(BatchSpanProcessor(exporter))
        self.tracer = self.provider.get_tracer(SERVICE)
        self._traces: OrderedDict[str, _RequestTrace] = OrderedDict()
        self._lock = threading.Lock()

    def begin(self, scope: Scope, request_id: str) -> Trace:
        trace = _RequestTrace(self, scope, request_id)
        with self._lock:
            self._traces[request_id] = trace
            while len(self._traces) > _MOST_KEPT:
                self._traces.popitem(last=False)
        return trace

    def verdict(self, verdict: Verdict) -> None:
        with self._lock:
            trace = self._traces.get(verdict.request_id)
        if trace is not None:
            trace.add(verdict)

    def close(self) -> None:
        self.provider.shutdown()


class _RequestTrace(Trace):
    def __init__(self, tracing: OpenTelemetryTracing, scope: Scope, request_id: str) -> None:
        from opentelemetry.trace import SpanKind, set_span_in_context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._tracer, self._propagator = tracing.tracer, TraceContextTextMapPropagator()
        self._operation = _OPERATIONS.get(scope["path"])
        self._method, self._stages = str(scope["method"]), 0
        sent = {
            name.decode("latin-1"): value.decode("latin-1")
            for name, value in scope["headers"]
            if name.decode("latin-1") in PROPAGATED
        }
        self._span: Span = self._tracer.start_span(
            self._method,
            self._propagator.extract(sent),
            SpanKind.SERVER,
            {"http.request.method": self._method, "guard.request_id": request_id},
        )
        self._context: Context = set_span_in_context(self._span)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        from opentelemetry.trace import SpanKind

        self._stages += 1
        if self._stages > _MOST_STAGES:
            yield
            return
        with self._spanned(name, SpanKind.INTERNAL):
            yield

    @contextmanager
    def upstream(self, name: str) -> Iterator[Mapping[str, str]]:
        from opentelemetry.trace import SpanKind, set_span_in_context

        with self._spanned(f"upstream {name}", SpanKind.CLIENT) as span:
            headers: dict[str, str] = {}
            self._propagator.inject(headers, set_span_in_context(span))
            yield headers

    @contextmanager
    def _spanned(self, name: str, kind: SpanKind) -> Iterator[Span]:
        span = self._tracer.start_span(name, self._context, kind)
        try:
            yield span
        except BaseException as error:
            span.set_attribute("error.type", type(error).__name__)
            raise
        finally:
            span.end()

    def add(self, verdict: Verdict) -> None:
        """The span of a row, which has just ended, and below it those of the guards that fired or
        failed."""
        from opentelemetry.trace import set_span_in_context

        now = time.time_ns()
        start = now - int(1e6 * verdict.elapsed_ms)
        attributes: dict[str, str | float] = {
            "gen_ai.request.model": verdict.model,
            "guard.policy": verdict.policy,
            "guard.outcome": verdict.outcome,
        }
        if self._operation is not None:
            attributes["gen_ai.operation.name"] = self._operation
        name = f"{self._operation or 'guards'} {verdict.model}"
        row = self._tracer.start_span(name, self._context, attributes=attributes, start_time=start)
        for guard in verdict.guards:
            if not guard.fired and guard.error is None:
                continue
            fired: dict[str, str | float] = {
                "guard.name": guard.guard,
                "guard.concept": guard.concept,
                "guard.method": guard.method,
                "guard.action": guard.action,
            }
            for key, value in (("score", guard.score), ("threshold", guard.threshold)):
                if value is not None:
                    fired[f"guard.{key}"] = value
            if guard.error is not None:
                fired["guard.error"] = guard.error
            span = self._tracer.start_span(
                f"guard {guard.guard}",
                set_span_in_context(row),
                attributes=fired,
                start_time=start,
            )
            span.end(now)
        row.end(now)

    def end(self, status: int, route: str, policy: str | None, outcome: str | None) -> None:
        from opentelemetry.trace import StatusCode

        span = self._span
        span.update_name(f"{self._method} {route}")
        span.set_attributes({"http.route": route, "http.response.status_code": status})
        if policy is not None:
            span.set_attribute("guard.policy", policy)
        if outcome is not None:
            span.set_attribute("guard.outcome", outcome)
        if status >= 500:
            span.set_status(StatusCode.ERROR)
        span.end()
