"""A server with all that the console shows: a tiny model, erasures, tenants and traffic."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from guard.config.schema import load_config
from guard.tenants.directory import open_directory
from guard.tenants.keys import key_ring
from guard.tenants.secret import hash_key
from server.app import create_app
from server.erasures.service import Erasures
from server.erasures.store import Store
from server.lifecycle.opening import follow_policies
from server.observe.traffic import Traffic
from server.policies.live import LiveConfiguration
from tests.server.live_server import serve_app
from tests.server.tenants.stand import Tenants, seeded
from tests.server.tiny_text_service import TinyTextModel

SECRET = "the administrator's"
ERASED = "erased"


@dataclass
class ConsoleServer:
    """A running server; `tenants` None: it is open."""

    url: str
    traffic: Traffic
    tenants: Tenants | None

    def get(self, path: str, key: str = SECRET, **options: Any) -> httpx.Response:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        return httpx.get(f"{self.url}{path}", headers=headers, timeout=20, **options)

    def chat(self, policy: str, text: str = "hello", **more: Any) -> httpx.Response:
        body: dict[str, Any] = {
            "model": "tiny",
            "messages": [{"role": "user", "content": text}],
            "max_tokens": 8,
            "temperature": 0,
            "guard": {"policy": policy},
        }
        key = self.tenants.tenant if self.tenants else ""
        headers = {"authorization": f"Bearer {key}"} if key else {}
        url = f"{self.url}/v1/chat/completions"
        return httpx.post(url, json=body | more, headers=headers, timeout=20)


@contextmanager
def console_server(
    model: TinyTextModel, folder: Path, *, keyed: bool = False, **server: Any
) -> Iterator[ConsoleServer]:
    """A server over `folder`; all its policies show where their
    guards act, but for `closed`. `keyed`: with a database of keys; `server`: more of `[server]`."""
    path = model.write_config(model.copy(folder), admin_hash=hash_key(SECRET), **server)
    shown = re.sub(r"(\[policies\..+\])", r"\1\ndebug = true", path.read_text())
    lines = [
        shown,
        f'[erasures]\nfolder = "erasures"\n[policies.{ERASED}]\nguards = []\ndebug = true',
        '[policies.closed]\nguards = ["never"]',
        '[live_policies]\ndatabase = "versions.sqlite"\nrefresh_s = 0.05',
    ]
    path.write_text("\n".join(lines))
    tenants = None
    if keyed:
        policies = {"policies": [*load_config(path).policies, "none"]}
        tenants = seeded(folder / "tenants.sqlite", organisation=policies)
        lines.append(f'[tenants]\ndatabase = "{tenants.path}"\nrefresh_s = 0.1')
        path.write_text("\n".join(lines))
    config = load_config(path)
    command = (sys.executable, "-m", "tests.server.erasures.fake_fit")
    with model.serve(folder, config) as running, open_directory(config) as directory:
        services = {"tiny": running.service}
        recorder = running.records.recorder
        recorder.traffic = traffic = Traffic()
        live = LiveConfiguration(config, services.values())
        policies = follow_policies(
            *(config, live, services, None, directory, recorder, running.metrics)
        )
        assert config.erasures.folder is not None
        erasures = Erasures(
            config,
            services,
            Store(config.erasures.folder),
            recorder.audit,
            command=(*command, str(folder / "always.safetensors")),
            live=live,
        )
        erasures.load()
        recorder.watch = erasures.count
        app = create_app(
            config,
            services,
            keys=key_ring(config, directory),
            metrics=running.metrics,
            erasures=erasures,
            directory=directory,
            traffic=traffic,
            live=live,
            policies=policies,
        )

        def stop() -> None:
            traffic.stop()
            erasures.stop()

        with serve_app(app, services) as (url, running_server):
            running_server.on_stop = stop
            yield ConsoleServer(url, traffic, tenants)
