"""Policies changed over HTTP while requests run."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

from starlette.types import Send

from tests.server.policies.stand import ADMIN, Administrator, administered, until
from tests.server.proxy.stand import Upstream, UpstreamRequest, chat_completion, send_response

NAMES = {"guards": ["names"], "action": "block"}


def test_new_requests_follow_a_change(tmp_path: Path) -> None:
    with administered(tmp_path) as admin:
        assert [admin.said(text) for text in ("forbidden", "Tom")] == ["blocked", "pass"]
        changed = admin.put("strict", NAMES, why="Tom asked for it")
        assert changed.status_code == 200
        version = changed.json()
        assert version["version"] == 2 and version["act"] == "put" and version["current"]
        assert version["by"] == "admin" and version["why"] == "Tom asked for it"
        assert version["settings"] == NAMES
        assert [admin.said(text) for text in ("forbidden", "Tom")] == ["pass", "blocked"]
        (line,) = [each for each in admin.proxy.audit_lines(6) if each.get("act") == "put"]
        assert line["event"] == "policies" and line["policy"] == "strict"
        assert (line["version"], line["by"], line["why"]) == ("2", "admin", "Tom asked for it")
        metrics = admin.proxy.metrics.render().decode()
        assert 'inference_guard_policy_changes_total{act="put",policy="strict"} 1.0' in metrics
        assert "inference_guard_policy_revision 2.0" in metrics


def test_a_policy_is_made_and_removed(tmp_path: Path) -> None:
    with administered(tmp_path) as admin:
        assert admin.put("people", NAMES).status_code == 201
        assert admin.said("Tom", guard={"policy": "people"}) == "blocked"
        assert admin.ask("DELETE", "people?why=unused").json()["settings"] is None
        answer = admin.ask("GET", "people")
        assert answer.status_code == 404
        assert answer.json()["error"]["code"] == "policy_not_found"
        assert admin.ask("GET", "people/versions").json()["data"][0]["act"] == "delete"
        again = admin.put("people", NAMES)
        assert (again.status_code, again.json()["version"]) == (200, 3)


FAULTS: list[tuple[object, str, str]] = [
    ({"guards": ["wrods"]}, "guards[0]", "words"),
    ({"guards": ["words"], "acton": "block"}, "acton", "action"),
    ({"guards": ["words"], "screen": {"turns": 0}}, "screen.turns", "greater"),
    ({"guards": []}, "guards", "names no guard"),
    ({"guards": ["words"], "thresholds": {"words": 0.5}}, "thresholds.words", "patterns"),
    ({"guards": ["words"], "thresholds": {"names": 0.5}}, "thresholds.names", "no guard of"),
    ({"guards": ["words"], "shadow": {"guards": ["w"]}}, "shadow.guards[0]", "words"),
    (
        {"guards": ["words"], "shadow": {"guards": ["names"], "screen": {"turns": 2}}},
        "shadow.screen.turns",
        "what the policy reads",
    ),
    (
        {"guards": ["words"], "shadow": {"guards": ["names"], "keep_text": True}},
        "shadow.keep_text",
        "leave it out",
    ),
]


def test_a_bad_change_is_refused_whole(tmp_path: Path) -> None:
    with administered(tmp_path) as admin:
        for settings, param, message in FAULTS:
            answer = admin.put("strict", settings)
            assert answer.status_code == 400
            error = answer.json()["error"]
            assert (error["code"], error["param"]) == ("invalid_policy", param)
            assert message in error["message"]
        assert admin.said("forbidden") == "blocked"
        assert admin.ask("GET", "strict").json()["version"] == 1


def test_what_others_name_is_not_removed(tmp_path: Path) -> None:
    with administered(tmp_path) as admin:
        answer = admin.ask("DELETE", "strict")
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "server.default_policy"
        assert admin.said("forbidden") == "blocked"


def test_versions_are_compared_and_rolled_back(tmp_path: Path) -> None:
    with administered(tmp_path) as admin:
        admin.put("strict", NAMES)
        diff = admin.ask("GET", "strict/diff").json()
        assert (diff["from"], diff["to"], diff["weaker"]) == (1, 2, True)
        assert diff["changes"] == [{"field": "guards", "before": ["words"], "after": ["names"]}]
        both = {"guards": ["names", "words"], "action": "block"}
        draft = admin.ask("POST", "strict/diff", json={"settings": both}).json()
        assert (draft["to"], draft["weaker"]) == (None, False)
        assert admin.said("forbidden") == "pass"  # a draft is not in force
        back = admin.ask("POST", "strict/rollback", json={"to": 1, "why": "no"}).json()
        assert (back["version"], back["act"]) == (3, "rollback")
        assert admin.said("forbidden") == "blocked"
        page = admin.ask("GET", "strict/versions?limit=2").json()
        assert [each["version"] for each in page["data"]] == [3, 2] and page["has_more"]
        assert [each["current"] for each in page["data"]] == [True, False]
        rest = admin.ask("GET", "strict/versions?before=2").json()
        assert [each["act"] for each in rest["data"]] == ["file"]
        assert admin.ask("GET", "strict/versions/2").json()["settings"] == NAMES
        missing = admin.ask("POST", "strict/rollback", json={"to": 9})
        assert missing.status_code == 404
        assert missing.json()["error"]["code"] == "version_not_found"


def test_who_expects_another_version_changes_nothing(tmp_path: Path) -> None:
    with administered(tmp_path) as admin:
        assert admin.put("strict", NAMES, version=1).status_code == 200
        late = admin.put("strict", NAMES, version=1)
        assert late.status_code == 409
        assert late.json()["error"]["code"] == "policy_changed"


def test_only_administrators_change_policies(tmp_path: Path) -> None:
    with administered(tmp_path) as admin:
        for headers in ({}, {"Authorization": "Bearer other"}):
            for method, path in (("PUT", "strict"), ("GET", "strict"), ("GET", "strict/versions")):
                body = {"settings": NAMES} if method == "PUT" else None
                answer = admin.ask(method, path, json=body, headers=headers)
                assert answer.status_code == 401, answer.text
        assert admin.ask("PUT", "strict", json={"settings": 3}, headers=ADMIN).status_code == 400


def test_running_requests_end_under_the_policy_that_they_began_with(tmp_path: Path) -> None:
    arrived, answer = threading.Event(), threading.Event()

    async def respond(request: UpstreamRequest, send: Send) -> None:
        arrived.set()
        await asyncio.to_thread(answer.wait, 20)
        await send_response(send, chat_completion("the forbidden thing"))

    with administered(tmp_path, upstream=Upstream(respond)) as admin:
        outcomes: list[str] = []
        running = threading.Thread(target=lambda: outcomes.append(admin.said("hello")))
        running.start()
        assert arrived.wait(20)
        assert admin.put("strict", NAMES).status_code == 200
        answer.set()
        running.join(20)
        assert outcomes == ["blocked"]
        assert admin.said("hello") == "pass"


def test_changes_outlive_the_proxy(tmp_path: Path) -> None:
    with administered(tmp_path) as admin:
        admin.put("strict", NAMES)
    with administered(tmp_path) as admin:
        assert admin.said("Tom") == "blocked" and admin.said("forbidden") == "pass"
        assert admin.ask("GET", "strict").json()["version"] == 2


def test_proxies_of_one_database_follow_each_other(tmp_path: Path) -> None:
    with administered(tmp_path) as one, administered(tmp_path) as other:
        assert other.said("Tom") == "pass"
        assert one.put("strict", NAMES).status_code == 200
        until(lambda: other.said("Tom") == "blocked", "the change")
        # each puts its change behind the other's
        assert other.put("people", NAMES).status_code == 201
        assert one.put("people", {**NAMES, "action": "flag"}).json()["version"] == 2
        until(lambda: flagged(other), "the second change")


def flagged(admin: Administrator) -> bool:
    return admin.said("Tom", guard={"policy": "people"}) == "flagged"
