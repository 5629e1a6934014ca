"""The texts of requests that a policy keeps: who may read them, and what is noted of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from guard.audit import AuditLog
from guard.config.schema import load_config
from guard.tenants.secret import hash_key
from guard.verdict import Verdict
from server.console.kept_texts import TrafficTexts
from server.observe.traffic import Finished
from server.screening.kept import KeptBody, KeptTexts
from server.wire.replies import encode
from tests.server.live_server import live_server
from tests.server.policies.stand import ADMIN, SECRET, Administrator, administered
from tests.server.tenants.stand import Tenants, bearer, seeded

POLICIES = """
[policies.strict]
guards = ["words"]
action = "block"
keep_text = true
[policies.forgetful]
guards = ["words"]
action = "flag"
"""
BODY = {
    "model": "m",
    "messages": [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "a forbidden word"},
    ],
    "guard": {"policy": "strict"},
}

SERVER = f"""
[server]
admin_hash = "{hash_key(SECRET)}"
[live_policies]
database = "versions.sqlite"
[[models]]
name = "fake"
source = "fake"
[[patterns]]
name = "secrets"
source = "secrets"
[policies.strict]
guards = ["secrets"]
action = "block"
keep_text = true
"""


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[tuple[Administrator, Tenants]]:
    allowed = {"policies": ["strict", "forgetful"]}
    tenants = seeded(tmp_path / "tenants.sqlite", organisation=allowed, team=allowed, key=allowed)
    more = '[tenants]\ndatabase = "tenants.sqlite"\nrefresh_s = 0.1\n'
    with administered(tmp_path, POLICIES, more) as admin:
        yield admin, tenants


def get(url: str, path: str, key: str = SECRET) -> httpx.Response:
    return httpx.get(f"{url}/guard/v1/traffic{path}", headers=bearer(key), timeout=20)


def asked(url: str, key: str, policy: str = "strict", **headers: str) -> None:
    body = BODY | {"guard": {"policy": policy}}
    sent = bearer(key) | headers
    httpx.post(f"{url}/v1/chat/completions", json=body, headers=sent, timeout=20)


def readings(log: Path) -> list[Any]:
    lines = map(json.loads, log.read_text().splitlines())
    return [line for line in lines if line.get("event") == "texts"]


def test_a_kept_text_is_read_by_those_who_read_the_traffic_and_each_reading_is_noted(
    proxy: tuple[Administrator, Tenants],
) -> None:
    (admin, tenants), log = proxy, proxy[0].proxy.audit
    url = admin.proxy.url
    asked(url, tenants.tenant)
    asked(url, tenants.tenant, "forgetful")
    newest, kept = get(url, "").json()["data"]
    assert (newest["text_kept"], kept["text_kept"]) == (False, True)
    for key, role in (("nobody's", 401), (tenants.tenant, 403)):
        refused = get(url, f"/{kept['id']}/text", key)
        assert refused.status_code == role and "kind" not in refused.text
    assert readings(log) == [], "nobody has read it"
    for key, name in ((SECRET, "admin"), (tenants.auditor, "key:")):
        found = get(url, f"/{kept['id']}/text", key).json()
        assert found["object"] == "traffic.text" and found["not_text"] == []
        assert [(each["place"], each["text"]) for each in found["texts"]] == [
            ("system", "Be kind."),
            ("user", "a forbidden word"),
        ]
        line = readings(log)[-1]
        assert line["by"].startswith(name) and line["tenant"] == "acme/research"
        assert (line["act"], line["request_id"]) == ("read", kept["request_id"])
    assert len(readings(log)) == 2 and "forbidden" not in log.read_text()


@pytest.mark.parametrize("number", ["2", "99"])
def test_what_is_not_kept_is_said(proxy: tuple[Administrator, Tenants], number: str) -> None:
    admin, tenants = proxy
    for policy in ("strict", "forgetful"):
        asked(admin.proxy.url, tenants.tenant, policy)
    refused = get(admin.proxy.url, f"/{number}/text")
    assert refused.status_code == 404 and refused.json()["error"]["code"] == "text_not_kept"
    assert get(admin.proxy.url, "/x/text").json()["error"]["code"] == "invalid_parameter"
    # a policy that keeps none any more has none to show
    assert get(admin.proxy.url, "/1/text").status_code == 200
    admin.put("strict", {"guards": ["words"], "action": "block"})
    assert get(admin.proxy.url, "/1/text").status_code == 404
    assert not get(admin.proxy.url, "?policy=strict").json()["data"][0]["text_kept"]


def test_an_id_that_came_under_two_policies_gives_no_text_to_the_other(
    proxy: tuple[Administrator, Tenants],
) -> None:
    admin, tenants = proxy
    for policy in ("strict", "forgetful"):
        asked(admin.proxy.url, tenants.tenant, policy, **{"x-request-id": "same"})
    newest, kept = get(admin.proxy.url, "").json()["data"]
    assert newest["request_id"] == kept["request_id"] == "same"
    assert (newest["text_kept"], kept["text_kept"]) == (False, True)


def test_nobody_reads_unseen(
    proxy: tuple[Administrator, Tenants], monkeypatch: pytest.MonkeyPatch
) -> None:
    admin, tenants = proxy
    asked(admin.proxy.url, tenants.tenant)

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(AuditLog, "append_event", refuse)
    refused = get(admin.proxy.url, "/1/text")
    assert refused.status_code == 503 and refused.json()["error"]["code"] == "audit_unavailable"
    assert "forbidden" not in refused.text


def test_a_stream_of_the_traffic_says_what_is_kept(proxy: tuple[Administrator, Tenants]) -> None:
    admin, tenants = proxy
    asked(admin.proxy.url, tenants.tenant)
    url = f"{admin.proxy.url}/guard/v1/traffic/events"
    with httpx.stream("GET", url, headers=ADMIN, timeout=20) as stream:
        line = next(line for line in stream.iter_lines() if line.startswith("data: "))
    assert json.loads(line[6:])["text_kept"]


def test_a_server_of_models_shows_kept_texts_too(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(SERVER)
    config = load_config(path)
    with live_server(config=config) as live:
        live.chat("a quiet word", guard={"policy": "strict"})
        (entry,) = get(live.url, "").json()["data"]
        assert entry["text_kept"]
        found = get(live.url, f"/{entry['id']}/text").json()
        assert [each["text"] for each in found["texts"]] == ["a quiet word"]


def test_half_a_surrogate_pair_in_json_in_a_string_is_shown_as_a_question_mark() -> None:
    message = {"role": "tool", "tool_call_id": "a", "content": '{"said": "so \\ud800 it is"}'}
    kept = KeptTexts(1)
    kept.put("t", "r", KeptBody("strict", encode({"messages": [message]}), "user"))
    finished = Finished(1, 0.0, "t", Verdict("r", "m", "strict", "pass", (), 1.0))
    answer = asyncio.run(TrafficTexts(kept, None).read(finished, "admin"))
    assert "so ? it is" in [each["text"] for each in json.loads(encode(answer))["texts"]]
