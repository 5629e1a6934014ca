from __future__ import annotations

import hashlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import openai
import pytest
import uvicorn

from guard.audit import AuditLog
from guard.config.keys import KeyRing
from guard.config.schema import Config
from guard.plans.screens import TextPlans
from server.app import create_app
from server.lifecycle.graceful import GracefulServer
from server.observe.metrics import Metrics
from server.observe.recorder import Recorder
from server.screening.middleware import Screens
from server.screening.texts.screener import Screener
from tests.server.fake_service import FakeService
from tests.server.stand import Workshop

Launch = Callable[..., AbstractContextManager["Live"]]


def settings(**server: Any) -> dict[str, Any]:
    """A configuration as its file would be parsed: two policies without guards, no keys."""
    return {
        "server": server,
        "models": [{"name": "fake", "source": "fake"}],
        "policies": {
            "strict": {"guards": [], "action": "block"},
            "watch": {"guards": [], "action": "observe"},
        },
    }


def key(secret: str, **more: Any) -> dict[str, Any]:
    """One entry of `[[keys]]`."""
    digest = hashlib.sha256(secret.encode()).hexdigest()
    return {"hash": f"sha256:{digest}", "tenant": "acme", "policies": [], **more}


@dataclass
class Live:
    """A running server, its one service, and clients for it."""

    url: str
    service: FakeService
    server: GracefulServer
    verdicts: list[Any] = field(default_factory=list)

    def client(self, api_key: str = "any") -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=api_key, max_retries=0, timeout=10)

    def post(self, path: str, **options: Any) -> httpx.Response:
        return httpx.post(f"{self.url}{path}", timeout=10, **options)

    def chat(self, text: str = "hi", **more: Any) -> httpx.Response:
        body = {"model": "fake", "messages": [{"role": "user", "content": text}], **more}
        return self.post("/v1/chat/completions", json=body)

    def wait_until(self, holds: Callable[[], bool]) -> None:
        end = time.monotonic() + 5
        while not holds():
            assert time.monotonic() < end, "it never came to hold"
            time.sleep(0.01)


@contextmanager
def launched(
    raw: dict[str, Any] | None = None,
    *,
    grace_s: float = 10.0,
    config: Config | None = None,
    audit: AuditLog | None = None,
) -> Iterator[Live]:
    """A real server on a free loopback port, in a thread of its own."""
    config = config or Config.model_validate(raw or settings())
    metrics = Metrics()
    recorder = Recorder(metrics.verdicts, audit)
    service = FakeService()
    verdicts: list[Any] = []

    def record(request: Any, verdict: Any) -> None:
        recorder(request, verdict)
        verdicts.append(verdict)

    service.record = record
    services = {"fake": service}
    keys = KeyRing(config.keys) if config.keys else None
    plans = TextPlans(config)
    screens = Screens(plans, Screener(plans.encoder, plans.heads), recorder)
    app = create_app(
        *(config, services),
        keys=keys,
        metrics=metrics,
        screens=screens if plans.active else None,
    )
    with listening(app, services, grace_s=grace_s) as (url, server):
        yield Live(url, service, server, verdicts)


@contextmanager
def listening(
    app: Any, services: Any, *, grace_s: float = 10.0
) -> Iterator[tuple[str, GracefulServer]]:
    """`app` on a free loopback port, in a thread of its own: its URL, and the server."""
    listener = socket.create_server(("127.0.0.1", 0))
    ready = threading.Event()
    server = GracefulServer(
        uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=5),
        services,
        on_ready=ready.set,
        grace_s=grace_s,
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        assert ready.wait(10)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", server
    finally:
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive()


@pytest.fixture
def launch() -> Launch:
    return launched


@pytest.fixture(scope="session")
def _shared() -> Iterator[Live]:
    with launched() as live:
        yield live


@pytest.fixture
def live(_shared: Live) -> Live:
    """One open server for all tests that leave it as they found it."""
    _shared.service.refusal = None
    _shared.service.submitted.clear()
    _shared.service.cancelled.clear()
    _shared.verdicts.clear()
    return _shared


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """A tiny model on disk, with guards for it."""
    return Workshop(tmp_path_factory.mktemp("workshop"))
