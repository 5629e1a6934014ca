"""Suppression lists of a running server change with their files, and nobody has to wait."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from guard.config.schema import Config, ServerConfig, load_config
from guard.fitting.suppression.lists import shrunk
from guard.tenants.keys import admin_ring
from guard.tenants.secret import hash_key
from server.app import create_app
from server.endpoints.lists import lists_router
from tests.server.live_server import serve_app
from tests.server.tiny_lists import tiny_list
from tests.server.tiny_text_service import TinyTextModel

SECRET = "the administrator's"
CONFIG = """
[[guards]]
name = "people"
artifact = "people.safetensors"
[policies.people]
guards = ["people"]
"""


@pytest.fixture
def server(tiny_model: TinyTextModel, tmp_path: Path) -> Iterator[str]:
    path = tiny_model.write_config(tiny_model.copy(tmp_path), admin_hash=hash_key(SECRET))
    tiny_list(tiny_model.fingerprint, ["one", "two"], threshold=1.5).save(
        tmp_path / "people.safetensors"
    )
    path.write_text(path.read_text() + CONFIG)
    config = load_config(path)
    with tiny_model.serve(tmp_path, config) as running:
        services = {"tiny": running.service}
        app = create_app(config, services, metrics=running.metrics)
        with serve_app(app, services) as (url, _):
            yield url


def _reload(url: str, key: str = SECRET) -> httpx.Response:
    headers = {"authorization": f"Bearer {key}"}
    return httpx.post(f"{url}/guard/v1/lists/reload", headers=headers, timeout=20)


def _guard(url: str) -> Any:
    body = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "tell me a tale"}],
        "max_tokens": 4,
        "guard": {"policy": "people"},
    }
    answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=20)
    assert answer.status_code == 200, answer.text
    (guard,) = answer.json()["guard"]["guards"]
    return guard


def test_a_list_that_has_changed_is_in_force_after_a_reload(
    server: str, tiny_model: TinyTextModel, tmp_path: Path
) -> None:
    assert not _guard(server)["fired"]
    grown = tiny_list(tiny_model.fingerprint, ["one", "two", "three"], threshold=0.5)
    grown.save(tmp_path / "people.safetensors")
    assert not _guard(server)["fired"]
    answer = _reload(server)
    assert answer.status_code == 200 and answer.json()["models"] == {"tiny": {"people": 3}}
    guard = _guard(server)
    assert guard["fired"] and guard["concept"] == "names/people/one"
    shrunk(grown, ["one"]).save(tmp_path / "people.safetensors")
    assert _reload(server).json()["models"] == {"tiny": {"people": 2}}
    assert _guard(server)["concept"] == "names/people/two"


def test_another_list_in_its_place_is_refused_and_nothing_changes(
    server: str, tiny_model: TinyTextModel, tmp_path: Path
) -> None:
    tiny_list(tiny_model.fingerprint, ["other", "two", "three"], 0.5).save(
        tmp_path / "people.safetensors"
    )
    answer = _reload(server)
    assert answer.status_code >= 400 and "restart the server" in answer.json()["error"]["message"]
    assert not _guard(server)["fired"]


def test_the_reload_is_the_administrators(server: str) -> None:
    assert _reload(server, "somebody").status_code == 401


def test_a_reload_waits_for_other_changes_of_the_plans() -> None:
    async def played() -> list[bool]:
        changing, app = asyncio.Lock(), FastAPI()
        admins = admin_ring(Config(server=ServerConfig(admin_hash=hash_key(SECRET))))
        assert admins is not None
        app.include_router(lists_router({}, Config, admins, changing))
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            headers = {"authorization": f"Bearer {SECRET}"}
            async with changing:
                task = asyncio.create_task(client.post("/guard/v1/lists/reload", headers=headers))
                await asyncio.sleep(0.05)
                early = task.done()
            return [early, (await task).status_code == 200]

    assert asyncio.run(played()) == [False, True]
