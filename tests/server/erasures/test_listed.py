"""An erasure that is a name on a suppression list: the list's file, the running lists and the
certificate say the same, whatever happens in between."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from guard.artifact import Artifact
from guard.certificate import check_artifacts, find_in_audit, read_certificate
from guard.errors import ArtifactError, DataError
from guard.fitting.suppression.lists import entries_of, shrunk
from server.erasures.store import RECORD
from tests.server.erasures.stand import ErasureServer, erasure_server
from tests.server.tiny_lists import tiny_list
from tests.server.tiny_text_service import TinyTextModel

ANNA = {"name": "Anna Muster", "list": "people", "policies": None}


def _list(folder: Path) -> Artifact:
    return Artifact.load(folder / "people.safetensors")


def _guard(server: ErasureServer) -> Any:
    (guard,) = server.chat("people")["guard"]["guards"]
    return guard


def _reload(server: ErasureServer) -> None:
    key = server.ask("GET").request.headers["authorization"]
    url = f"{server.url}/guard/v1/lists/reload"
    assert httpx.post(url, headers={"authorization": key}, timeout=20).status_code == 200


def test_a_name_gets_on_the_list_and_off_it(tiny_model: TinyTextModel, tmp_path: Path) -> None:
    path = tmp_path / "certificate.json"
    with erasure_server(tiny_model, tmp_path) as server:
        before = _list(tmp_path)
        assert not _guard(server)["fired"]
        erasure = server.erase(**ANNA, aliases=["A. Muster", "Anna Muster"])
        made = server.until(erasure, "in force")
        assert [step["state"] for step in made["history"]] == ["collecting", "fitting", "in force"]
        assert made["policies"] == ["people", "more"] and made["guards"] == []
        assert (made["list"], made["entry"]) == ("people", "anna-muster")
        assert entries_of(_list(tmp_path)) == ["one", "two", "anna-muster", "anna-muster"]
        guard = _guard(server)
        assert guard["fired"] and guard["concept"] == "names/people/anna-muster"
        path.write_bytes(server.ask("GET", f"/{erasure}/certificate").content)
        found = read_certificate(path)
        assert found.listed is not None and found.listed.added.before == before.digest
        assert found.listed.added.after == _list(tmp_path).digest
        assert found.listed.concept == guard["concept"] and found.fired["in force"].requests == 1
        assert found.figures == {"fired_by_name": "100.0% (2/2; 20.7% to 100.0%)"}
        assert find_in_audit(found, tmp_path / "audit.jsonl")
        page = server.ask("GET", f"/{erasure}/certificate?format=html").text
        assert "anna-muster" in page and before.digest in page
        assert check_artifacts(found, tmp_path) == 1
        shadow = server.ask("POST", f"/{erasure}/state", json={"state": "shadow"})
        assert shadow.status_code == 409 and "leave out 'list'" in shadow.text
        assert server.ask("DELETE", f"/{erasure}").json()["state"] == "withdrawn"
        assert entries_of(_list(tmp_path)) == ["one", "two"] and not _guard(server)["fired"]
        path.write_bytes(server.ask("GET", f"/{erasure}/certificate").content)
        ended = read_certificate(path)
        assert ended.listed is not None and ended.listed.removed is not None
        assert ended.listed.removed.after == _list(tmp_path).digest
        assert ended.policies[0].until is not None and check_artifacts(ended, tmp_path) == 1
        with pytest.raises(DataError, match="no list here has the entry 'anna-muster'"):
            check_artifacts(found, tmp_path)
        states = [line["state"] for line in server.audit()]
        assert states == ["collecting", "fitting", "in force", "in force", "withdrawn"]
        # the next person has the same name
        server.until(server.erase(**ANNA), "in force")
        assert entries_of(_list(tmp_path)) == ["one", "two", "anna-muster"]


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"list": "nobody"}, "list", "there is people, unused, quiet"),
    ({"list": "always"}, "list", "No suppression list"),
    ({"list": "../people"}, "list", "No suppression list"),
    ({"list": ""}, "list", "No suppression list"),
    ({"list": ["people"]}, "list", "Invalid"),
    ({"list": "unused"}, "list", "No policy uses"),
    ({"list": "quiet"}, "list", "is in shadow"),
    ({"policies": ["people", "erased"]}, "policies[1]", "does not use the list"),
    ({"name": "Anna\nMuster"}, "name", "line breaks"),
    ({"name": "x" * 10_000}, "name", "at most 100"),
    ({"name": "(.*)+$"}, "name", "no letters"),
    ({"entry": "../one"}, "entry", "no word"),
    ({"entry": "x" * 101}, "entry", "at most 100"),
    ({"aliases": ["Anna\0"]}, "aliases[0]", "control characters"),
    ({"documents": ["A text."]}, "documents", "put further names into 'aliases'"),
    ({"start": "shadow"}, "start", "leave out 'list'"),
    ({"list": None, "policies": ["people"], "entry": "anna"}, "entry", "give the 'list'"),
    ({"list": None}, "policies", "Missing"),
    ({"entry": "one"}, "entry", "has an entry 'one' already"),
]


def test_what_cannot_get_on_a_list_is_refused_before_any_work(
    tiny_model: TinyTextModel, tmp_path: Path
) -> None:
    with erasure_server(tiny_model, tmp_path) as server:
        for fields, param, message in REFUSED:
            answer = server.ask("POST", json={"model": "tiny"} | ANNA | fields)
            status = 409 if fields == {"entry": "one"} else 400
            error = answer.json()["error"]
            assert (answer.status_code, error["param"]) == (status, param), (fields, error)
            assert message in error["message"], (fields, error)
        assert [*(tmp_path / "erasures").glob("er-*")] == []


def test_an_entry_is_asked_for_once(tiny_model: TinyTextModel, tmp_path: Path) -> None:
    with erasure_server(tiny_model, tmp_path, queue_limit=5) as server:
        slow = server.erase(**ANNA | {"name": "Slow"})
        again = server.ask("POST", json={"model": "tiny"} | ANNA | {"name": "slow"})
        assert again.status_code == 409 and slow in again.json()["error"]["message"]
        assert server.ask("DELETE", f"/{slow}").json()["state"] == "withdrawn"
        assert entries_of(_list(tmp_path)) == ["one", "two"]


def test_a_list_that_changes_meanwhile_is_fitted_anew(
    tiny_model: TinyTextModel, tmp_path: Path
) -> None:
    with erasure_server(tiny_model, tmp_path, queue_limit=5) as server:
        first = server.erase(**ANNA)
        server.until(first, "in force")
        slow = server.erase(**ANNA | {"name": "Slow"})
        server.until(slow, "fitting")
        server.ask("DELETE", f"/{first}")
        (tmp_path / "erasures" / slow / "go").touch()
        server.until(slow, "in force")
        assert entries_of(_list(tmp_path)) == ["one", "two", "slow"]
        # somebody puts the same name on it by hand, and takes it off again
        tiny_list(tiny_model.fingerprint, ["one", "two", "", "slow", "berta"], 1.5).save(
            tmp_path / "people.safetensors"
        )
        berta = server.until(server.erase(**ANNA | {"name": "Berta"}), "failed")
        assert "has an entry 'berta' already" in berta["reason"]
        shrunk(_list(tmp_path), ["slow"]).save(tmp_path / "people.safetensors")
        _reload(server)
        found = server.until(slow, "withdrawn")
        assert found["reason"] == "its entry was taken off the list"


def _killed_while_fitting(folder: Path, erasure: str) -> None:
    """The record as it is when its list has just changed, or is about to."""
    path = folder / "erasures" / erasure / RECORD
    facts = json.loads(path.read_text())
    path.write_text(json.dumps(facts | {"history": facts["history"][:2], "fired": {}}))


@pytest.mark.parametrize("put", [False, True])
def test_a_server_that_was_killed_puts_the_name_on_the_list_once(
    tiny_model: TinyTextModel, tmp_path: Path, put: bool
) -> None:
    bare = (tmp_path / "bare", tmp_path / "people.safetensors")
    with erasure_server(tiny_model, tmp_path) as server:
        bare[0].write_bytes(bare[1].read_bytes())
        erasure = server.erase(**ANNA)
        server.until(erasure, "in force")
        after = _list(tmp_path).digest
    _killed_while_fitting(tmp_path, erasure)
    if not put:
        bare[1].write_bytes(bare[0].read_bytes())
    with erasure_server(tiny_model, tmp_path) as server:
        server.until(erasure, "in force")
        assert entries_of(_list(tmp_path)) == ["one", "two", "anna-muster"]
        assert _guard(server)["concept"] == "names/people/anna-muster"
        listed = server.ask("GET", f"/{erasure}/certificate").json()["listed"]
        assert listed["added"]["after"] == after == _list(tmp_path).digest
        assert server.ask("GET", f"/{erasure}").json()["fired"]["in force"]["requests"] == 1


def test_what_was_put_on_before_the_kill_can_be_withdrawn_before_it_is_fitted(
    tiny_model: TinyTextModel, tmp_path: Path
) -> None:
    with erasure_server(tiny_model, tmp_path) as server:
        erasure = server.erase(**ANNA | {"name": "Slow"})
        go = tmp_path / "erasures" / erasure / "go"
        go.touch()
        server.until(erasure, "in force")
    _killed_while_fitting(tmp_path, erasure)
    go.unlink()
    with erasure_server(tiny_model, tmp_path) as server:
        assert _guard(server)["fired"]
        assert server.ask("DELETE", f"/{erasure}").json()["state"] == "withdrawn"
        assert entries_of(_list(tmp_path)) == ["one", "two"] and not _guard(server)["fired"]


def test_an_entry_that_is_gone_at_the_start_is_withdrawn(
    tiny_model: TinyTextModel, tmp_path: Path
) -> None:
    with erasure_server(tiny_model, tmp_path) as server:
        erasure = server.erase(**ANNA)
        server.until(erasure, "in force")
    path = tmp_path / "people.safetensors"
    shrunk(_list(tmp_path), ["anna-muster"]).save(path)
    with erasure_server(tiny_model, tmp_path) as server:
        assert server.ask("GET", f"/{erasure}").json()["state"] == "withdrawn"


def test_a_list_that_no_longer_fits_is_put_back(
    tiny_model: TinyTextModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise ArtifactError("does not fit")

    with erasure_server(tiny_model, tmp_path) as server:
        before = _list(tmp_path).digest
        with monkeypatch.context() as patch:
            patch.setattr(server.running.service, "use", refused)
            failed = server.until(server.erase(**ANNA), "failed")
        assert failed["reason"] == "does not fit" and _list(tmp_path).digest == before
        server.until(server.erase(**ANNA), "in force")


def test_the_last_name_can_be_withdrawn_and_another_one_put_on(
    tiny_model: TinyTextModel, tmp_path: Path
) -> None:
    with erasure_server(tiny_model, tmp_path) as server:
        erasure = server.erase(**ANNA)
        server.until(erasure, "in force")
        shrunk(_list(tmp_path), ["one", "two"]).save(tmp_path / "people.safetensors")
        _reload(server)
        assert server.ask("DELETE", f"/{erasure}").json()["state"] == "withdrawn"
        assert entries_of(_list(tmp_path)) == [] and not _guard(server)["fired"]
        server.until(server.erase(**ANNA), "in force")
        assert _guard(server)["fired"]
