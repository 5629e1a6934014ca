"""Erasures on lists that others change, that are gone, or that cannot be kept."""

from __future__ import annotations

import errno
import json
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from guard.artifact import Artifact
from guard.fitting.suppression.lists import entries_of
from server.erasures import live
from server.erasures.lists import put
from server.erasures.record import Record
from server.erasures.store import FITTED, LIST, RECORD, RESULT
from tests.server.erasures.stand import erasure_server
from tests.server.tiny_lists import tiny_list
from tests.server.tiny_text_service import TinyTextModel

ANNA: dict[str, Any] = {"name": "Anna Muster", "list": "people", "policies": None}


def _entries(folder: Path) -> list[str]:
    return entries_of(Artifact.load(folder / "people.safetensors"))


def test_a_withdrawal_leaves_the_entry_that_somebody_else_has_made_meanwhile(
    tiny_model: TinyTextModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["one", "two", "anna-muster"]

    def beaten(path: Path, folder: Path, change: Any) -> Any:
        tiny_list(tiny_model.fingerprint, names, 1.5).save(path)
        return put(path, folder, change)

    monkeypatch.setattr(live, "put", beaten)
    with erasure_server(tiny_model, tmp_path) as server:
        erasure = server.erase(**ANNA)
        assert "has an entry 'anna-muster' already" in server.until(erasure, "failed")["reason"]
        assert "listed" not in server.ask("GET", f"/{erasure}/certificate").json()
        assert not (tmp_path / "erasures" / erasure / FITTED).exists()
        assert server.ask("DELETE", f"/{erasure}").json()["state"] == "withdrawn"
        assert _entries(tmp_path) == names


def test_nothing_of_the_name_stays_behind_a_fit_that_is_withdrawn(
    tiny_model: TinyTextModel, tmp_path: Path
) -> None:
    with erasure_server(tiny_model, tmp_path) as server:
        erasure = server.erase(**ANNA | {"name": "Slow"})
        server.until(erasure, "fitting")
        folder = tmp_path / "erasures" / erasure
        for name in (FITTED, f".{FITTED}"):
            (folder / name).mkdir()
            (folder / name / LIST).touch()
            (folder / name / RESULT).touch()
        assert server.ask("DELETE", f"/{erasure}").json()["state"] == "withdrawn"
        assert not (folder / FITTED).exists() and not (folder / f".{FITTED}").exists()


def test_all_models_that_have_the_list_take_its_new_names(
    tiny_model: TinyTextModel, tmp_path: Path
) -> None:
    with erasure_server(tiny_model, tmp_path) as server:
        twin = SimpleNamespace(plans=server.running.service.plans)

        def use(plans: Any) -> Future[None]:
            twin.plans = plans
            done = Future[None]()
            done.set_result(None)
            return done

        twin.use = use
        server.erasures._live._services["twin"] = twin  # type: ignore[assignment]
        erasure = server.erase(**ANNA)
        server.until(erasure, "in force")
        assert "anna-muster" in twin.plans.entries["people"]
        server.ask("DELETE", f"/{erasure}")
        assert twin.plans.entries["people"] == ["one", "two"]


@pytest.mark.parametrize("killed", [False, True])
def test_an_erasure_can_be_withdrawn_whose_list_is_not_configured_any_more(
    tiny_model: TinyTextModel, tmp_path: Path, killed: bool
) -> None:
    with erasure_server(tiny_model, tmp_path) as server:
        erasure = server.erase(**ANNA)
        server.until(erasure, "in force")
    config, record = tmp_path / "config.toml", tmp_path / "erasures" / erasure / RECORD
    text = config.read_text()
    guard = '[[guards]]\nname = "people"\nartifact = "people.safetensors"\n'
    for old, new in ((guard, ""), ('["people"]', "[]"), ('["people", "quiet"]', '["quiet"]')):
        assert old in text
        text = text.replace(old, new)
    config.write_text(text)
    if killed:
        facts = json.loads(record.read_text())
        record.write_text(json.dumps(facts | {"history": facts["history"][:2], "fired": {}}))
    with erasure_server(tiny_model, tmp_path) as server:
        if killed:
            server.until(erasure, "failed")
            assert server.ask("DELETE", f"/{erasure}").json()["state"] == "withdrawn"
        else:
            found = server.until(erasure, "withdrawn")
            assert found["reason"] == "its list is not configured any more"
        assert _entries(tmp_path) == ["one", "two", "anna-muster"]


@pytest.mark.parametrize("asked", [ANNA, {"start": "in force"}])
def test_what_cannot_be_kept_is_not_in_force(
    tiny_model: TinyTextModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: Any
) -> None:
    with erasure_server(tiny_model, tmp_path) as server:
        store = server.erasures._store
        save = store.save

        def full(record: Record) -> None:
            if record.state == "in force":
                raise OSError(errno.ENOSPC, "No space left on device")
            save(record)

        monkeypatch.setattr(store, "save", full)
        failed = server.until(server.erase(**asked), "failed")
        assert failed["reason"] == "the erasure cannot be kept: No space left on device"
        assert _entries(tmp_path) == ["one", "two"]
        assert not any(guard["fired"] for guard in server.chat("people")["guard"]["guards"])
        assert server.chat()["guard"]["guards"] == []
