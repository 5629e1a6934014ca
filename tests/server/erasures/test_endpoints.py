"""Requests about erasures: who may ask, what is refused, pages of them, certificates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from guard.certificate import check_artifacts, find_in_audit, read_certificate
from server.wire.schemas.erasures import MOST_ALIASES, MOST_DOCUMENTS
from tests.server.erasures.stand import POLICY, erasure_server
from tests.server.live_server import live_server
from tests.server.tiny_text_service import TinyTextModel

ROUTES = [
    ("GET", ""),
    ("POST", ""),
    ("GET", "/er-0"),
    ("GET", "/er-0/events"),
    ("POST", "/er-0/state"),
    ("DELETE", "/er-0"),
    ("GET", "/er-0/certificate"),
]
GOOD = {"name": "Tale", "model": "tiny", "policies": [POLICY]}


def test_without_the_section_there_are_no_erasures() -> None:
    with live_server() as server:
        for method, path in ROUTES:
            answer = httpx.request(method, f"{server.url}/guard/v1/erasures{path}", timeout=10)
            assert answer.status_code == 404 and answer.json()["error"]["code"] == "unknown_url"


def test_only_the_administrator_may_ask(tiny_model: TinyTextModel, tmp_path: Path) -> None:
    with erasure_server(tiny_model, tmp_path) as server:
        for method, path in ROUTES:
            for headers in ({"authorization": ""}, {"authorization": "Bearer other"}):
                answer = server.ask(method, path, headers=headers)
                assert answer.status_code == 401, (method, path)
                assert answer.json()["error"]["code"] == "invalid_api_key"
        unknown = server.ask("GET", "/er-0123456789ab")
        assert unknown.status_code == 404
        assert unknown.json()["error"]["code"] == "erasure_not_found"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"name": "..."}, "name"),
        ({"name": "two\nlines"}, "name"),
        ({"name": "x" * 101}, "name"),
        ({"name": None}, "name"),
        ({"aliases": ["fine", "\t"]}, "aliases[1]"),
        ({"aliases": ["a"] * (MOST_ALIASES + 1)}, "aliases"),
        ({"model": "ghost"}, "model"),
        ({"policies": []}, "policies"),
        ({"policies": ["none"]}, "policies[0]"),
        ({"policies": [POLICY, "ghost"]}, "policies[1]"),
        ({"policies": [POLICY, POLICY]}, "policies[1]"),
        ({"documents": [" "]}, "documents[0]"),
        ({"documents": ["text", "nul \0"]}, "documents[1]"),
        ({"documents": ["a"] * (MOST_DOCUMENTS + 1)}, "documents"),
        ({"documents": "a text"}, "documents"),
        ({"start": "fitting"}, "start"),
        ({"about": "/etc/passwd"}, "about"),
    ],
)
def test_what_cannot_be_erased_is_refused_before_any_work(
    tiny_model: TinyTextModel, tmp_path: Path, fields: dict[str, Any], param: str
) -> None:
    with erasure_server(tiny_model, tmp_path) as server:
        answer = server.ask("POST", json=GOOD | fields)
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["param"] == param
        assert [*(tmp_path / "erasures").glob("er-*")] == []


def test_the_queue_and_the_pages_are_bounded(tiny_model: TinyTextModel, tmp_path: Path) -> None:
    with erasure_server(tiny_model, tmp_path) as server:
        ids = [server.erase("Slow"), server.erase()]
        full = server.ask("POST", json=GOOD)
        assert full.status_code == 429 and int(full.headers["Retry-After"]) >= 1
        first = server.ask("GET", params={"limit": 1}).json()
        assert [each["id"] for each in first["data"]] == ids[1:] and first["has_more"]
        rest = server.ask("GET", params={"limit": 1, "after": first["last_id"]}).json()
        assert [each["id"] for each in rest["data"]] == ids[:1] and not rest["has_more"]
        for limit in ("0", "101", "-1", "all", "9" * 99):
            assert server.ask("GET", params={"limit": limit}).status_code == 400
        assert server.ask("GET", params={"after": "er-0"}).status_code == 404


def test_a_certificate_holds_and_each_has_its_line(
    tiny_model: TinyTextModel, tmp_path: Path
) -> None:
    path = tmp_path / "certificate.json"
    with erasure_server(tiny_model, tmp_path) as server:
        erasure = server.erase(aliases=["Story"], documents=["A tale."], start="in force")
        server.until(erasure, "in force")
        first = server.ask("GET", f"/{erasure}/certificate")
        assert server.ask("GET", f"/{erasure}/certificate").json() == first.json()
        server.chat()
        path.write_bytes(server.ask("GET", f"/{erasure}/certificate").content)
        page = server.ask("GET", f"/{erasure}/certificate", headers={"accept": "text/html"})
        assert page.headers["content-type"].startswith("text/html")
        assert "default-src 'none'" in page.headers["content-security-policy"]
        assert erasure in page.text and "Erasure of Tale" in page.text
        same = server.ask("GET", f"/{erasure}/certificate", params={"format": "html"})
        assert same.text == page.text
        assert server.ask("GET", f"/{erasure}/certificate?format=xml").status_code == 400
    found = read_certificate(path)
    assert first.json()["fired"] == {} and found.fired["in force"].requests == 1
    assert found.asked.aliases == ("Story",) and found.asked.documents[0].characters == 7
    assert found.model is not None and found.model.fingerprint == tiny_model.fingerprint
    assert found.policies[0].until is None
    assert find_in_audit(found, tmp_path / "audit.jsonl")[0] > 3
    assert check_artifacts(found, tmp_path / "erasures" / erasure / "fitted") == 1


def test_a_folder_is_of_one_server(tiny_model: TinyTextModel, tmp_path: Path) -> None:
    from guard.errors import GuardError
    from server.erasures.store import Store

    with erasure_server(tiny_model, tmp_path) as server:
        erasure = server.erase()
        server.until(erasure, "shadow")
        with pytest.raises(GuardError, match="another server uses this folder"):
            Store(tmp_path / "erasures")
    record = tmp_path / "erasures" / erasure / "erasure.json"
    record.write_text(record.read_text().replace('"shadow"', '"elsewhere"'))
    (tmp_path / "erasures" / ".new-er-000000000000").mkdir()
    store = Store(tmp_path / "erasures")
    assert not (tmp_path / "erasures" / ".new-er-000000000000").exists()
    with pytest.raises(GuardError, match="is no record of an erasure"):
        store.load()
    store.close()
