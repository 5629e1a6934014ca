"""A proxy and an upstream on real sockets; what the upstream answers is scripted."""

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
from guard.config.keys import KeyRing
from guard.config.schema import Config, load_config
from guard.plans.screens import TextPlans
from server.observe.metrics import Metrics
from server.observe.middleware import ExchangeMiddleware
from server.observe.recorder import Recorder
from server.proxy.app import ProxyApp
from server.proxy.forward import Forwarder
from server.proxy.metrics import watch_upstreams
from server.proxy.request import ProxyContext
from server.proxy.upstreams import Upstreams
from server.screening.texts.screener import Screener


@contextmanager
def served(app: Any) -> Iterator[int]:
    """The app on a free port, in a thread of its own."""
    settings = uvicorn.Config(
        app, port=0, log_level="critical", lifespan="on", server_header=False, ws="none"
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
class Got:
    """A request as the upstream has seen it."""

    method: str
    path: str
    headers: list[tuple[str, str]]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def header(self, name: str) -> str | None:
        return dict(self.headers).get(name)


@dataclass
class Upstream:
    """An ASGI app that answers as `answer` says, and keeps what it was asked."""

    answer: Callable[[Got, Send], Awaitable[None]]
    got: list[Got] = field(default_factory=list)
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
        got = Got(scope["method"], path, headers, body)
        self.got.append(got)
        answering = asyncio.ensure_future(self.answer(got, send))
        watching = asyncio.ensure_future(receive())
        await asyncio.wait((answering, watching), return_when=asyncio.FIRST_COMPLETED)
        if not answering.done():
            self.hung_up.set()
            answering.cancel()
        watching.cancel()
        if answering.done() and not answering.cancelled():
            answering.result()


async def reply(
    send: Send,
    body: bytes | dict[str, Any],
    *,
    status: int = 200,
    media: str = "application/json",
    headers: dict[str, str] | None = None,
) -> None:
    """One whole answer."""
    raw = json.dumps(body).encode() if isinstance(body, dict) else body
    given = {"content-type": media, "content-length": str(len(raw)), **(headers or {})}
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [(k.encode(), v.encode()) for k, v in given.items()],
        }
    )
    await send({"type": "http.response.body", "body": raw, "more_body": False})


async def begin(send: Send, media: str = "text/event-stream") -> None:
    """The head of a streamed answer."""
    head = [(b"content-type", media.encode())]
    await send({"type": "http.response.start", "status": 200, "headers": head})


async def piece(send: Send, body: bytes, *, more: bool = True) -> None:
    """A piece of one."""
    await send({"type": "http.response.body", "body": body, "more_body": more})


def chat(text: str) -> dict[str, Any]:
    """A chat's whole answer."""
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


def chunk(delta: dict[str, Any], *, index: int = 0, end: str | None = None) -> bytes:
    """An event of a streamed chat."""
    choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": end}
    event = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    return f"data: {json.dumps({**event, 'choices': [choice]})}\n\n".encode()


def spoken(texts: list[str]) -> Callable[[Got, Send], Awaitable[None]]:
    """Answers a chat with these deltas, streamed."""

    async def answer(got: Got, send: Send) -> None:
        await begin(send)
        await piece(send, chunk({"role": "assistant", "content": ""}))
        for text in texts:
            await piece(send, chunk({"content": text}))
        await piece(send, chunk({}, end="stop"))
        await piece(send, b"data: [DONE]\n\n", more=False)

    return answer


@dataclass
class Proxy:
    """A running one; `url` ends without a slash."""

    url: str
    app: ProxyApp
    metrics: Metrics
    audit: Path

    def lines(self, count: int = 1) -> list[dict[str, Any]]:
        """The audit log, once it has so many lines."""
        until = time.monotonic() + 10
        while time.monotonic() < until:
            found = self.audit.read_text().splitlines() if self.audit.exists() else []
            if len(found) >= count:
                return [json.loads(line) for line in found]
            time.sleep(0.01)
        raise AssertionError(f"{count} audit lines did not come")


@contextmanager
def proxied(folder: Path, text: str, *ports: int, screener: Any = None) -> Iterator[Proxy]:
    """The proxy of a configuration, in front of upstreams on these ports.

    Upstreams that the configuration does not have are added.
    """
    if "[[upstreams]]" not in text:
        for number, port in enumerate(ports):
            text += f'\n[[upstreams]]\nname = "u{number}"\nurl = "http://127.0.0.1:{port}"\n'
    path = folder / "config.toml"
    path.write_text(text)
    config: Config = load_config(path)
    metrics = Metrics()
    plans = TextPlans(config)
    with AuditLog(folder / "audit.jsonl") as audit:
        upstreams = Upstreams(config.upstreams)
        desk = ProxyContext(
            config,
            plans,
            screener or Screener(plans.encoder, plans.heads),
            Forwarder(upstreams, config.proxy),
            Recorder(metrics.verdicts, audit).record,
        )
        app = ProxyApp(desk, KeyRing(config.keys) if config.keys else None, metrics)
        watch_upstreams(upstreams, metrics.registry)
        with served(ExchangeMiddleware(app, metrics)) as port:
            yield Proxy(f"http://127.0.0.1:{port}", app, metrics, folder / "audit.jsonl")
