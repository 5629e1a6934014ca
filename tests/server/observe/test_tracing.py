"""Spans of requests: of the server, of the proxy, and of both, one behind the other."""

from __future__ import annotations

import gzip
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from guard.errors import ConfigError
from server.observe import tracing as module
from server.observe.tracing import OFF, OpenTelemetryTracing, tracing_of
from tests.server.live_server import live_server
from tests.server.proxy.stand import (
    Upstream,
    UpstreamRequest,
    chat_completion,
    proxied,
    send_response,
    served,
)

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SENT = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=1"}
SECRET = "AKIAIOSFODNN7EXAMPLE"
POLICY = """
[server]
default_policy = "clean"

[[patterns]]
name = "keys"
source = "secrets"

[policies.clean]
guards = ["keys"]
action = "redact"
"""


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def tracing(exporter: InMemorySpanExporter) -> Iterator[OpenTelemetryTracing]:
    tracing = OpenTelemetryTracing(exporter)
    yield tracing
    tracing.close()


def by_name(tracing: OpenTelemetryTracing, exporter: Any) -> dict[str, ReadableSpan]:
    tracing.provider.force_flush()
    return {span.name: span for span in exporter.get_finished_spans()}


def identity(span: ReadableSpan) -> tuple[str, str]:
    assert span.context is not None
    return f"{span.context.trace_id:032x}", f"{span.context.span_id:016x}"


def parent(span: ReadableSpan) -> str | None:
    return f"{span.parent.span_id:016x}" if span.parent is not None else None


async def leaking(request: UpstreamRequest, send: Any) -> None:
    await send_response(send, chat_completion(f"Take {SECRET}."))


def ask(url: str, text: str = "my question", **headers: str) -> httpx.Response:
    body = {"model": "fake", "messages": [{"role": "user", "content": text}]}
    return httpx.post(f"{url}/v1/chat/completions", json=body, headers=headers, timeout=10)


def test_a_request_is_a_span_with_its_row_and_the_guards_that_fired(
    tracing: OpenTelemetryTracing, exporter: InMemorySpanExporter
) -> None:
    with live_server(tracing=tracing) as server:
        answer = ask(server.url, "cut", **SENT)  # the model's guard fires
        assert answer.status_code == 200
    spans = by_name(tracing, exporter)
    root = spans["POST /v1/chat/completions"]
    trace, span = identity(root)
    assert (trace, parent(root), root.kind) == (TRACE, PARENT, SpanKind.SERVER)
    assert root.attributes is not None
    assert root.attributes["http.response.status_code"] == 200
    assert root.attributes["guard.request_id"] == answer.headers["x-request-id"]
    row = spans["chat fake"]
    assert parent(row) == span and row.attributes is not None
    assert row.attributes["gen_ai.operation.name"] == "chat"
    assert row.attributes["gen_ai.request.model"] == "fake"
    fired = [guard for guard in server.verdicts[0].guards if guard.fired]
    assert fired
    for guard in fired:
        of_guard = spans[f"guard {guard.guard}"]
        assert parent(of_guard) == identity(row)[1] and of_guard.attributes is not None
        assert of_guard.attributes["guard.score"] == guard.score


def test_the_proxys_upstream_gets_the_span_of_its_request_in_place_of_the_clients(
    tracing: OpenTelemetryTracing, exporter: InMemorySpanExporter, tmp_path: Path
) -> None:
    upstream = Upstream(leaking)
    with served(upstream) as port, proxied(tmp_path, POLICY, port, tracing=tracing) as proxy:
        assert SECRET not in ask(proxy.url, **SENT).text
    # the span ends behind the last byte of the answer: none is open once the proxy is gone
    spans = by_name(tracing, exporter)
    (request,) = upstream.requests
    sent = [value for name, value in request.headers if name == "traceparent"]
    call = spans["upstream u0"]
    assert sent == [f"00-{TRACE}-{identity(call)[1]}-01"]
    assert [value for name, value in request.headers if name == "tracestate"] == ["vendor=1"]
    root = spans["POST /v1/chat/completions"]
    assert parent(call) == parent(spans["screens of text"]) == identity(root)[1]
    assert spans["guard keys"].attributes is not None
    assert spans["guard keys"].attributes["guard.action"] == "redact"
    assert call.kind == SpanKind.CLIENT
    for span in spans.values():
        assert SECRET not in span.to_json() and "my question" not in span.to_json()


def test_without_tracing_the_clients_headers_reach_the_upstream(tmp_path: Path) -> None:
    upstream = Upstream(leaking)
    with served(upstream) as port, proxied(tmp_path, POLICY, port) as proxy:
        ask(proxy.url, **SENT)
    (request,) = upstream.requests
    assert request.header("traceparent") == SENT["traceparent"]


def test_an_upstream_that_is_not_there_is_an_error_of_its_span(
    tracing: OpenTelemetryTracing, exporter: InMemorySpanExporter, tmp_path: Path
) -> None:
    with proxied(tmp_path, POLICY, 9, tracing=tracing) as proxy:
        assert ask(proxy.url).status_code == 502
    spans = by_name(tracing, exporter)
    call, root = spans["upstream u0"], spans["POST /v1/chat/completions"]
    assert call.attributes is not None and "Unreachable" in str(call.attributes["error.type"])
    assert root.parent is None and not root.status.is_ok


@pytest.mark.parametrize("header", ["", "00-x-y-01", "00-" + "0" * 32 + f"-{PARENT}-01", "9" * 900])
def test_a_damaged_traceparent_begins_a_trace_of_its_own(
    header: str, tracing: OpenTelemetryTracing, exporter: InMemorySpanExporter
) -> None:
    with live_server(tracing=tracing) as server:
        assert ask(server.url, traceparent=header).status_code == 200
    assert by_name(tracing, exporter)["POST /v1/chat/completions"].parent is None


def test_the_stages_and_the_kept_traces_are_bounded(
    tracing: OpenTelemetryTracing,
    exporter: InMemorySpanExporter,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_MOST_KEPT", 3)
    scope = {"path": "/v1/chat/completions", "method": "POST", "headers": []}
    traces = [tracing.begin(scope, f"r{i}") for i in range(10)]
    assert len(tracing._traces) == 3
    for _ in range(200):
        with traces[0].stage("screens of text"):
            pass
    tracing.provider.force_flush()
    assert len(exporter.get_finished_spans()) == 64


def test_spans_go_to_the_endpoint_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    async def taken(request: UpstreamRequest, send: Any) -> None:
        await send_response(send, b"", media="application/x-protobuf")

    collector = Upstream(taken)
    with served(collector) as port:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("OTEL_SERVICE_NAME", "shop")
        tracing = tracing_of(True)
        with live_server(tracing=tracing) as server:
            ask(server.url)
        tracing.close()
    (request,) = collector.requests
    assert request.path == "/v1/traces"
    packed = request.header("content-encoding") == "gzip"
    body = gzip.decompress(request.body) if packed else request.body
    (sent,) = ExportTraceServiceRequest.FromString(body).resource_spans
    names = {a.key: a.value.string_value for a in sent.resource.attributes}
    assert names["service.name"] == "shop"
    spans = [span.name for scoped in sent.scope_spans for span in scoped.spans]
    assert "POST /v1/chat/completions" in spans and "chat fake" in spans


def test_tracing_without_its_packages_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    assert tracing_of(False) is OFF
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'inference-guard\[traces\]'"):
        tracing_of(True)
