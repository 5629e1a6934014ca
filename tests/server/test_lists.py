"""Suppression lists of a running server change with their files, and nobody has to wait."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI

from guard.artifact import Artifact, ArtifactMeta
from guard.config.keys import hash_key
from guard.config.schema import Config, load_config
from guard.fitting.suppression.lists import shrunk
from server.app import create_app
from server.endpoints.lists import lists_router
from tests.server.live_server import serve_app
from tests.server.tiny_text_service import TinyTextModel, steer_meta, steer_tensors

SECRET = "the administrator's"
CONFIG = """
[[guards]]
name = "people"
artifact = "people.safetensors"
[policies.people]
guards = ["people"]
"""


def _list(model: TinyTextModel, entries: list[str], threshold: float) -> Artifact:
    """A list whose every entry has a score of 1 at every token."""
    base, count = steer_meta(model.fingerprint), len(entries)
    directions = np.asarray(steer_tensors()["directions"])
    width, layers = directions.shape[1], base.settings["sense_layers"]
    assert isinstance(layers, list)
    settings: dict[str, Any] = {
        **{key: base.settings[key] for key in ("sense_layers", "act_layers", "schedule")},
        **{"rest": 1, "radius": 1.0, "strength": 1.0, "recheck": None, "threshold": threshold},
        "entries": entries,
    }
    fields = base.model_dump() | {"method": "suppression-list", "settings": settings}
    tensors = {
        "gates": np.zeros((count, len(layers), width)),
        "bias": np.ones(count),
        "centres": np.zeros((count, 4)),
        "projection": np.zeros((len(layers), width, 4)),
        "directions": directions,
    }
    meta = ArtifactMeta.model_validate(fields | {"concept": "names/people", "tensors_sha256": ""})
    return Artifact(meta, tensors)


@pytest.fixture
def server(tiny_model: TinyTextModel, tmp_path: Path) -> Iterator[str]:
    path = tiny_model.write_config(tiny_model.copy(tmp_path), admin_hash=hash_key(SECRET))
    _list(tiny_model, ["one", "two"], threshold=1.5).save(tmp_path / "people.safetensors")
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
    grown = _list(tiny_model, ["one", "two", "three"], threshold=0.5)
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
    _list(tiny_model, ["other", "two", "three"], 0.5).save(tmp_path / "people.safetensors")
    answer = _reload(server)
    assert answer.status_code >= 400 and "restart the server" in answer.json()["error"]["message"]
    assert not _guard(server)["fired"]


def test_the_reload_is_the_administrators(server: str) -> None:
    assert _reload(server, "somebody").status_code == 401


def test_a_reload_waits_for_other_changes_of_the_plans() -> None:
    async def played() -> list[bool]:
        changing, app = asyncio.Lock(), FastAPI()
        app.include_router(lists_router({}, Config, hash_key(SECRET), changing))
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            headers = {"authorization": f"Bearer {SECRET}"}
            async with changing:
                task = asyncio.create_task(client.post("/guard/v1/lists/reload", headers=headers))
                await asyncio.sleep(0.05)
                early = task.done()
            return [early, (await task).status_code == 200]

    assert asyncio.run(played()) == [False, True]
