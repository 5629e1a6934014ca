"""Real HTTP servers on a loopback port, in a thread of their own."""

from __future__ import annotations

import hashlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
import openai
import pytest
import uvicorn
from prometheus_client.parser import text_string_to_metric_families

from guard.audit import AuditLog
from guard.config.schema import Config
from guard.plans.screens import TextPlans
from guard.replicas.opening import ledger_of, open_replicas
from guard.tenants.acts import noting
from guard.tenants.directory import open_directory
from guard.tenants.keys import key_ring
from server.app import create_app
from server.lifecycle.connections import ConnectionLimits, bounded_http
from server.lifecycle.graceful import GracefulServer
from server.lifecycle.opening import follow_policies
from server.observe.metrics import Metrics
from server.observe.recorder import Recorder
from server.observe.tracing import OFF, Tracing
from server.observe.traffic import Traffic
from server.policies.live import LiveConfiguration
from server.screening.kept import KeptTexts
from server.screening.middleware import Screens
from server.screening.texts.screener import Screener
from tests.server.fake_service import FakeService
from tests.server.running_service import Records


def settings(**server: Any) -> dict[str, Any]:
    """A parsed configuration file: two policies without guards, no keys."""
    return {
        "server": server,
        "models": [{"name": "fake", "source": "fake"}],
        "policies": {
            "strict": {"guards": [], "action": "block"},
            "watch": {"guards": [], "action": "observe"},
        },
    }


def key(secret: str, **options: Any) -> dict[str, Any]:
    """One entry of `[[keys]]`."""
    digest = hashlib.sha256(secret.encode()).hexdigest()
    return {"hash": f"sha256:{digest}", "tenant": "acme", "policies": [], **options}


@dataclass
class HttpServer:
    """The URL of a running server, and clients for it."""

    url: str

    def client(self, api_key: str = "any") -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=api_key, max_retries=0, timeout=20)

    def metrics(self) -> dict[tuple[str, tuple[str, ...]], float]:
        """Every sample by its name and the values of its labels, in the labels' order."""
        text = httpx.get(f"{self.url}/metrics").text
        return {
            (sample.name, tuple(value for _, value in sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def wait_until(self, holds: Callable[[], bool]) -> None:
        end = time.monotonic() + 10
        while not holds():
            assert time.monotonic() < end, "the condition did not become true"
            time.sleep(0.01)


@dataclass
class LiveServer(HttpServer):
    """A running server with one FakeService."""

    service: FakeService
    server: GracefulServer
    verdicts: list[Any] = field(default_factory=list)

    def post(self, path: str, **options: Any) -> httpx.Response:
        return httpx.post(f"{self.url}{path}", timeout=10, **options)

    def chat(self, text: str = "hi", **options: Any) -> httpx.Response:
        body = {"model": "fake", "messages": [{"role": "user", "content": text}], **options}
        return self.post("/v1/chat/completions", json=body)


Launch = Callable[..., AbstractContextManager[LiveServer]]


@contextmanager
def live_server(
    raw: dict[str, Any] | None = None,
    *,
    grace_s: float = 10.0,
    config: Config | None = None,
    audit: AuditLog | None = None,
    sees: bool = False,
    tracing: Tracing = OFF,
) -> Iterator[LiveServer]:
    """A server with a FakeService; without `config`, under `raw` or the `settings`.

    `sees`: its model takes images.
    """
    config = config or Config.model_validate(raw or settings())
    metrics = Metrics()
    records = Records(Recorder(metrics.verdicts, audit, tracing), metrics)
    service = FakeService(record=records)
    service.info = replace(service.info, sees=sees)
    services = {"fake": service}
    traffic = records.recorder.traffic = Traffic()
    plans = TextPlans(config)
    kept = KeptTexts(config.live_policies.kept_texts)
    screens = Screens(plans, Screener(plans.cascade, plans.images), records.recorder, kept)
    offered = screens if plans.active or config.live_policies.is_configured else None
    with (
        open_replicas(config.replicas) as replicas,
        open_directory(config, noting(audit), ledger_of(replicas)) as directory,
    ):
        live = LiveConfiguration(config, services.values())
        policies = follow_policies(
            config, live, services, offered, directory, records.recorder, metrics
        )
        app = create_app(
            *(config, services),
            keys=key_ring(config, directory, ledger_of(replicas)),
            metrics=metrics,
            screens=offered,
            directory=directory,
            tracing=tracing,
            traffic=traffic,
            live=live,
            policies=policies,
        )
        with serve_app(app, services, grace_s=grace_s) as (url, server):
            yield LiveServer(url, service, server, records.verdicts)


@contextmanager
def serve_app(
    app: Any, services: Any, *, grace_s: float = 10.0
) -> Iterator[tuple[str, GracefulServer]]:
    """Serve `app` on a free loopback port: its URL, and the server."""
    listener = socket.create_server(("127.0.0.1", 0))
    ready = threading.Event()
    server = GracefulServer(
        uvicorn.Config(
            app,
            log_level="warning",
            timeout_graceful_shutdown=5,
            http=bounded_http(ConnectionLimits()),
        ),
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


def disconnecting_client(
    url: str, body: dict[str, Any], *, after_s: float = 0.4
) -> threading.Thread:
    """A started thread whose client posts `body` and disconnects after `after_s` seconds."""

    def post() -> None:
        with pytest.raises(httpx.TimeoutException):
            httpx.post(url, json=body, timeout=httpx.Timeout(20, read=after_s))

    thread = threading.Thread(target=post)
    thread.start()
    return thread
