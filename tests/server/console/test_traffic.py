"""`/guard/v1/me` and `/guard/v1/traffic`: who may read, what is kept, and that streams end."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from guard.verdict import GuardVerdict, Verdict
from server.console import endpoints
from server.observe.traffic import Traffic
from tests.server.console.stand import SECRET, ConsoleServer, console_server
from tests.server.live_server import live_server
from tests.server.tiny_text_service import TinyTextModel


@pytest.fixture(scope="module")
def keyed(
    tiny_model: TinyTextModel, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ConsoleServer]:
    with console_server(tiny_model, tmp_path_factory.mktemp("keyed"), keyed=True) as server:
        yield server


def verdict(number: int, **more: Any) -> Verdict:
    guard = GuardVerdict("books", "topic/books", "steer", 0.25, 0.5, False, "none")
    settings = {"model": "tiny", "policy": "strict", "outcome": "pass", "guards": (guard,)} | more
    return Verdict(request_id=f"req-{number}", elapsed_ms=1.5, **settings)


def test_the_caller_is_told_its_role_and_what_it_may_use(keyed: ConsoleServer) -> None:
    assert keyed.tenants is not None
    mine = {"traffic", "erasures", "tenants", "models", "policies", "live_policies"}
    for key, role, offers in (
        (SECRET, "admin", mine),
        (keyed.tenants.admin, "admin", mine),
        (keyed.tenants.auditor, "auditor", mine),
        (keyed.tenants.tenant, "tenant", {"models", "policies"}),
        ("", None, {"models", "policies"}),
    ):
        found = keyed.get("/guard/v1/me", key).json()
        assert found["role"] == role and set(found["offers"]) == offers, key
        assert found["keyed"] and found["administered"]
    unknown = keyed.get("/guard/v1/me", "nobody's")
    assert unknown.status_code == 401 and unknown.json()["error"]["code"] == "invalid_api_key"
    with live_server() as live:
        found = httpx.get(f"{live.url}/guard/v1/me", timeout=30).json()
        assert not found["keyed"] and not found["administered"] and found["role"] is None
        assert httpx.get(f"{live.url}/guard/v1/traffic", timeout=30).status_code == 404


def test_only_administrators_and_auditors_read_the_traffic(keyed: ConsoleServer) -> None:
    assert keyed.tenants is not None
    for path in ("/guard/v1/traffic", "/guard/v1/traffic/events"):
        assert keyed.get(path, "").status_code == 401
        assert keyed.get(path, "nobody's").status_code == 401
        refused = keyed.get(path, keyed.tenants.tenant)
        assert refused.status_code == 403 and refused.json()["error"]["code"] == "role_forbidden"
    for key in (SECRET, keyed.tenants.auditor):
        assert keyed.get("/guard/v1/traffic", key).status_code == 200


def test_administrators_and_auditors_see_all_policies_and_models(keyed: ConsoleServer) -> None:
    assert keyed.tenants is not None
    for key in (SECRET, keyed.tenants.admin, keyed.tenants.auditor):
        found = keyed.get("/guard/v1/policies", key).json()["data"]
        assert {"none", "closed", "steer-always"} <= {policy["id"] for policy in found}
        assert {policy["id"] for policy in found if policy["debug"]}.isdisjoint({"closed", "none"})
        assert keyed.get("/v1/models", key).json()["data"][0]["id"] == "tiny"
    assert keyed.get("/guard/v1/policies", "").status_code == 401


def test_a_request_shows_with_its_verdict_and_without_its_texts(keyed: ConsoleServer) -> None:
    answer = keyed.chat("observe-always", "a secret tale").json()
    newest = keyed.get("/guard/v1/traffic?limit=1").json()["data"][0]
    assert {name: newest.pop(name) for name in ("tenant", "id")}["tenant"] == "acme/research"
    assert newest.pop("time").endswith("Z") and not newest.pop("text_kept")
    assert newest == answer["guard"]
    assert "secret" not in keyed.get("/guard/v1/traffic").text


def test_filters_pages_and_what_is_no_filter(keyed: ConsoleServer) -> None:
    for policy in ("steer-always", "steer-never", "none"):
        assert keyed.chat(policy).status_code == 200

    def ids(query: str) -> list[str]:
        data = keyed.get(f"/guard/v1/traffic?{query}").json()["data"]
        assert [each["id"] for each in data] == sorted((e["id"] for e in data), reverse=True)
        return [each["policy"] for each in data]

    assert ids("limit=3") == ["none", "steer-never", "steer-always"]
    assert set(ids("policy=steer-never")) == {"steer-never"}
    assert set(ids("outcome=steered")) == {"steer-always"}
    assert set(ids("guard=always&model=tiny")) == {"steer-always", "observe-always"}
    assert ids("tenant=somebody") == [] and ids("model=other") == []
    assert keyed.get("/guard/v1/traffic?limit=1").json()["has_more"]
    last = keyed.get("/guard/v1/traffic?limit=1").json()["data"][0]["id"]
    assert ids(f"after={last}") == [] and ids(f"after={last - 1}") == ["none"]
    for query in ("limit=0", "limit=1001", "limit=x", "after=-1", f"policy={'p' * 201}"):
        refused = keyed.get(f"/guard/v1/traffic?{query}")
        assert refused.status_code == 400, query
        assert refused.json()["error"]["param"] == query.partition("=")[0]


def test_a_stream_tells_of_each_request_as_it_ends(keyed: ConsoleServer) -> None:
    last = keyed.get("/guard/v1/traffic?limit=1").json()["data"]
    query = f"policy=observe-never&after={last[0]['id'] if last else 0}"
    headers = {"authorization": f"Bearer {SECRET}"}
    url = f"{keyed.url}/guard/v1/traffic/events?{query}"
    found: list[Any] = []
    with httpx.stream("GET", url, headers=headers, timeout=20) as stream:
        for policy in ("none", "observe-never", "observe-never"):
            keyed.chat(policy)
        for line in stream.iter_lines():
            found += [json.loads(line[6:])] if line.startswith("data: ") else []
            if len(found) == 2:
                break
    assert [each["policy"] for each in found] == ["observe-never"] * 2
    end = time.monotonic() + 20
    while keyed.traffic.followers:
        assert time.monotonic() < end, "a stream whose client is gone is followed no more"
        time.sleep(0.02)


def test_streams_are_bounded_and_end_with_the_server(
    tiny_model: TinyTextModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoints, "MOST_STREAMS", 1)
    headers, ended = {"authorization": f"Bearer {SECRET}"}, threading.Event()
    with console_server(tiny_model, tmp_path) as server:
        url = f"{server.url}/guard/v1/traffic/events"

        def follow() -> None:
            with httpx.stream("GET", url, headers=headers, timeout=30) as stream:
                stream.read()
            ended.set()

        follower = threading.Thread(target=follow)
        follower.start()
        end = time.monotonic() + 20
        while not server.traffic.followers:
            assert time.monotonic() < end
            time.sleep(0.02)
        refused = httpx.get(url, headers=headers, timeout=20)
        assert refused.status_code == 429 and refused.headers["retry-after"]
    assert ended.wait(20), "the stream ended by itself"
    follower.join(20)


def streamed(
    traffic: Traffic, until: Callable[[bytes], bool], may_read: Callable[[], bool]
) -> bytes:
    """What a client reads that hangs up once `until` holds of it."""

    async def read() -> bytes:
        sent, gone = bytearray(), asyncio.Event()

        async def receive() -> dict[str, Any]:
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.extend(message.get("body", b""))
            if until(bytes(sent)):
                gone.set()

        async with asyncio.timeout(30):
            await endpoints.TrafficStream(traffic, {}, 0, may_read)({}, receive, send)
        return bytes(sent)

    return asyncio.run(read())


def test_a_stream_is_told_the_newest_of_many_at_once() -> None:
    traffic = Traffic()
    for number in range(endpoints._MOST_AT_ONCE + 3):
        traffic.add(verdict(number), "acme")
    events = streamed(traffic, lambda sent: b"req-" in sent, lambda: True).split(b"\n\n")[:-1]
    assert [json.loads(event[6:])["id"] for event in events] == [*range(4, 204)]
    assert not traffic.followers


def test_a_quiet_stream_says_so_and_ends_with_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoints, "_QUIET_S", 0.01)
    answers = iter([True, True, False])
    sent = streamed(Traffic(), lambda _: False, lambda: next(answers))
    assert sent == b": still here\n\n" * 2


def test_the_oldest_requests_are_let_go_of() -> None:
    traffic = Traffic(most=3, now=lambda: 1_800_000_000.5)
    for number in range(5):
        traffic.add(verdict(number), "acme")
    assert [each.verdict.request_id for each in traffic.since()] == ["req-2", "req-3", "req-4"]
    assert [each.number for each in traffic.since(4)] == [5] and traffic.since(5) == []
    assert traffic.since()[0].as_dict()["time"] == "2027-01-15T08:00:00.500Z"


def test_no_request_is_missed_by_a_follower() -> None:
    traffic, most = Traffic(), 300

    async def follow() -> list[int]:
        seen, after = [], 0
        with traffic.followed() as follower:
            writer = threading.Thread(
                target=lambda: [traffic.add(verdict(i), "") for i in range(most)]
            )
            writer.start()
            while len(seen) < most:
                found = traffic.since(after)
                seen += [each.number for each in found]
                after = seen[-1] if seen else 0
                if len(seen) < most:
                    async with asyncio.timeout(20):
                        await follower.wait()
            writer.join()
        return seen

    assert asyncio.run(follow()) == [*range(1, most + 1)]
