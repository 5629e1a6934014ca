"""A proxy and a scripted upstream on real sockets."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from starlette.types import Receive, Scope, Send

from guard.audit import AuditLog
from guard.config.schema import Config, load_config
from guard.plans.screens import TextPlans
from guard.replicas.opening import ledger_of, open_replicas
from guard.tenants.acts import noting
from guard.tenants.directory import open_directory
from guard.tenants.keys import key_ring
from server.edge.http_edge import edged
from server.lifecycle.connections import ConnectionLimits, bounded_http
from server.observe.metrics import Metrics
from server.observe.middleware import ExchangeMiddleware
from server.observe.recorder import Recorder
from server.observe.replicas import register_shared_limits
from server.observe.tracing import OFF, Tracing
from server.proxy.administration import administer
from server.proxy.app import ProxyApp
from server.proxy.forwarding.forward import Forwarder
from server.proxy.forwarding.upstreams import Upstreams
from server.proxy.metrics import register_upstream_metrics
from server.proxy.request import ProxyContext
from server.screening.kept import KeptTexts
from server.screening.texts.screener import Screener


@contextmanager
def served(app: Any, limits: ConnectionLimits | None = None) -> Iterator[int]:
    """The app on a free port, in a separate thread."""
    settings = uvicorn.Config(
        app,
        port=0,
        log_level="critical",
        lifespan="on",
        server_header=False,
        ws="none",
        http=bounded_http(limits or ConnectionLimits()),
    )
    server = uvicorn.Server(settings)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.005)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(20)


@dataclass
class UpstreamRequest:
    """A request as the upstream received it."""

    method: str
    path: str
    headers: list[tuple[str, str]]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def header(self, name: str) -> str | None:
        return dict(self.headers).get(name)


Respond = Callable[[UpstreamRequest, Send], Awaitable[None]]


@dataclass
class Upstream:
    """An ASGI app that answers with `respond`, and keeps the requests that it received."""

    respond: Respond
    requests: list[UpstreamRequest] = field(default_factory=list)
    hung_up: threading.Event = field(default_factory=threading.Event)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            while True:
                message = await receive()
                await send({"type": f"{message['type']}.complete"})
                if message["type"] == "lifespan.shutdown":
                    return
        body = b""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.hung_up.set()
                return
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        headers = [(name.decode(), value.decode()) for name, value in scope["headers"]]
        query = scope["query_string"].decode()
        path = scope["raw_path"].decode() + (f"?{query}" if query else "")
        request = UpstreamRequest(scope["method"], path, headers, body)
        self.requests.append(request)
        response = asyncio.ensure_future(self.respond(request, send))
        disconnect = asyncio.ensure_future(receive())
        await asyncio.wait((response, disconnect), return_when=asyncio.FIRST_COMPLETED)
        if not response.done():
            self.hung_up.set()
            response.cancel()
        disconnect.cancel()
        if response.done() and not response.cancelled():
            response.result()


async def send_response(
    send: Send,
    body: bytes | dict[str, Any],
    *,
    status: int = 200,
    media: str = "application/json",
    headers: dict[str, str] | None = None,
) -> None:
    """A whole response."""
    raw = json.dumps(body).encode() if isinstance(body, dict) else body
    pairs = {"content-type": media, "content-length": str(len(raw)), **(headers or {})}
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [(k.encode(), v.encode()) for k, v in pairs.items()],
        }
    )
    await send({"type": "http.response.body", "body": raw, "more_body": False})


async def send_head(send: Send, media: str = "text/event-stream") -> None:
    """The head of a streamed response."""
    head = [(b"content-type", media.encode())]
    await send({"type": "http.response.start", "status": 200, "headers": head})


async def send_chunk(send: Send, body: bytes, *, more: bool = True) -> None:
    """A chunk of a streamed response."""
    await send({"type": "http.response.body", "body": body, "more_body": more})


def chat_completion(text: str) -> dict[str, Any]:
    """A whole chat completion."""
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    }


def chat_chunk(delta: dict[str, Any], *, index: int = 0, end: str | None = None) -> bytes:
    """An event of a streamed chat."""
    choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": end}
    event = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    return f"data: {json.dumps({**event, 'choices': [choice]})}\n\n".encode()


def chat_stream(texts: list[str]) -> Respond:
    """Streams a chat completion of these deltas."""

    async def respond(request: UpstreamRequest, send: Send) -> None:
        await send_head(send)
        await send_chunk(send, chat_chunk({"role": "assistant", "content": ""}))
        for text in texts:
            await send_chunk(send, chat_chunk({"content": text}))
        await send_chunk(send, chat_chunk({}, end="stop"))
        await send_chunk(send, b"data: [DONE]\n\n", more=False)

    return respond


@dataclass
class Proxy:
    """A running proxy; `url` ends without a slash."""

    url: str
    app: ProxyApp
    metrics: Metrics
    audit: Path

    def audit_lines(self, count: int = 1) -> list[dict[str, Any]]:
        """The audit log, once it has so many lines."""
        until = time.monotonic() + 10
        while time.monotonic() < until:
            lines = self.audit.read_text().splitlines() if self.audit.exists() else []
            if len(lines) >= count:
                return [json.loads(line) for line in lines]
            time.sleep(0.01)
        raise AssertionError(f"{count} audit lines did not come")


@contextmanager
def proxied(
    folder: Path, text: str, *ports: int, screener: Any = None, tracing: Tracing = OFF
) -> Iterator[Proxy]:
    """The proxy of a configuration, in front of upstreams on these ports.

    Upstreams that the configuration does not have are added, with the plugin where policies
    delegate to it.
    """
    if "[[upstreams]]" not in text:
        for number, port in enumerate(ports):
            text += f'\n[[upstreams]]\nname = "u{number}"\nurl = "http://127.0.0.1:{port}"\n'
            text += "plugin = true\n" if "upstream_policy" in text else ""
    path = folder / "config.toml"
    path.write_text(text)
    config: Config = load_config(path)
    metrics = Metrics(config)
    plans = TextPlans(config, runs_models=False)
    with (
        AuditLog(folder / "audit.jsonl") as audit,
        open_replicas(config.replicas) as replicas,
        open_directory(config, noting(audit), ledger_of(replicas)) as directory,
    ):
        upstreams = Upstreams(config.upstreams)
        recorder = Recorder(metrics.verdicts, audit, tracing)
        context = ProxyContext(
            config,
            plans,
            screener or Screener(plans.cascade, plans.images, timed=metrics.verdicts.time_reading),
            Forwarder(upstreams, config.proxy),
            recorder.record,
            kept=KeptTexts(config.live_policies.kept_texts),
        )
        keys = key_ring(config, directory, ledger_of(replicas))
        app = ProxyApp(context, keys, metrics, replicas)
        administer(app, config, directory, recorder, metrics)
        register_upstream_metrics(upstreams, metrics.registry)
        if replicas is not None:
            register_shared_limits(replicas.ledger, metrics.registry)
        outer = edged(ExchangeMiddleware(app, metrics, tracing), app.context.paths, config.server)
        with served(outer) as port:
            yield Proxy(f"http://127.0.0.1:{port}", app, metrics, folder / "audit.jsonl")
