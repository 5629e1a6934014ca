"""A server with erasures over a tiny model, whose fits take an artifact that is there."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from guard.config.schema import load_config
from guard.tenants.secret import hash_key
from server.app import create_app
from server.erasures.service import Erasures
from server.erasures.store import Store
from tests.server.live_server import serve_app
from tests.server.running_service import audit_lines
from tests.server.tiny_lists import tiny_list
from tests.server.tiny_text_service import RunningText, TinyTextModel

SECRET = "the administrator's"
POLICY = "erased"
LISTS = """
[[guards]]
name = "people"
artifact = "people.safetensors"
[[guards]]
name = "unused"
artifact = "unused.safetensors"
[[guards]]
name = "quiet"
artifact = "quiet.safetensors"
shadow = true
[policies.people]
guards = ["people"]
[policies.more]
guards = ["people", "quiet"]
"""


@dataclass
class ErasureServer:
    """A running server, and its administrator."""

    url: str
    folder: Path
    running: RunningText
    erasures: Erasures

    def ask(self, method: str, path: str = "", **options: Any) -> httpx.Response:
        headers = {"authorization": f"Bearer {SECRET}"} | options.pop("headers", {})
        url = f"{self.url}/guard/v1/erasures{path}"
        return httpx.request(method, url, headers=headers, timeout=20, **options)

    def erase(self, name: str = "Tale", **more: Any) -> str:
        body = {"name": name, "model": "tiny", "policies": [POLICY], **more}
        answer = self.ask("POST", json=body)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def until(self, erasure: str, state: str) -> Any:
        end = time.monotonic() + 20
        while (found := self.ask("GET", f"/{erasure}").json())["state"] != state:
            assert time.monotonic() < end, found
            time.sleep(0.02)
        return found

    def chat(self, policy: str = POLICY) -> Any:
        """The answer to a request, with its verdict."""
        body = {
            "model": "tiny",
            "messages": [{"role": "user", "content": "tell me a tale"}],
            "max_tokens": 12,
            "temperature": 0,
            "guard": {"policy": policy},
        }
        answer = httpx.post(f"{self.url}/v1/chat/completions", json=body, timeout=20)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def audit(self, event: str = "erasure") -> list[dict[str, Any]]:
        return [line for line in audit_lines(self.folder) if line.get("event") == event]


def text_of(answer: Any) -> str:
    return str(answer["choices"][0]["message"]["content"])


@contextmanager
def erasure_server(
    model: TinyTextModel,
    folder: Path,
    *,
    artifact: str = "always",
    queue_limit: int = 1,
    **options: Any,
) -> Iterator[ErasureServer]:
    """A server over `folder`, which may have been another's before; `options` of its `[server]`."""
    if not (folder / "config.toml").exists():
        path = model.write_config(model.copy(folder), admin_hash=hash_key(SECRET), **options)
        more = f'[erasures]\nfolder = "erasures"\nqueue_limit = {queue_limit}\n'
        path.write_text(path.read_text() + more + f"[policies.{POLICY}]\nguards = []\n" + LISTS)
        for name in ("people", "unused", "quiet"):
            tiny_list(model.fingerprint, ["one", "two"], 1.5).save(folder / f"{name}.safetensors")
    config = load_config(folder / "config.toml")
    module = "tests.server.erasures.fake_fit"
    command = (sys.executable, "-m", module, str(folder / f"{artifact}.safetensors"))
    with model.serve(folder, config) as running:
        assert config.erasures.folder is not None
        services = {"tiny": running.service}
        recorder = running.records.recorder
        store = Store(config.erasures.folder)
        erasures = Erasures(config, services, store, recorder.audit, command=command)
        erasures.load()
        recorder.watch = erasures.count
        app = create_app(config, services, metrics=running.metrics, erasures=erasures)
        with serve_app(app, services) as (url, server):
            server.on_stop = erasures.stop
            yield ErasureServer(url, folder, running, erasures)


def events(body: str) -> list[Any]:
    return [json.loads(line[6:]) for line in body.splitlines() if line.startswith("data: ")]
