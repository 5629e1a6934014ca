"""What a change would have done to the last requests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from guard.cli import app
from tests.server.policies.stand import SECRET, Administrator, administered
from tests.server.proxy.screened import answering

KEPT = '[policies.strict]\nguards = ["words"]\naction = "block"\nkeep_text = true\n'


def replayed(admin: Administrator, settings: Any, **options: Any) -> Any:
    body = {"settings": settings, **options}
    answer = admin.ask("POST", "strict/replay", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_scores_say_what_another_action_would_have_done(tmp_path: Path) -> None:
    with administered(tmp_path) as admin:
        for text in ("forbidden", "hello", "forbidden again", "hi"):
            admin.said(text)
        found = replayed(admin, {"guards": ["words"], "action": "flag"})
        assert (found["read"], found["replayed"], found["changed"]) == (4, 4, 2)
        assert found["transitions"] == [{"from": "blocked", "to": "flagged", "count": 2}]
        newest = found["requests"][0]
        assert newest["from"] == "blocked" and not newest["complete"]
        assert newest["guards"][0]["before"]["action"] == "block"
        assert newest["guards"][0]["after"] == {"threshold": 1.0, "fired": True, "action": "flag"}
        # nothing was switched
        assert admin.said("forbidden") == "blocked"
        # the settings in force decide as they did
        assert replayed(admin, {"guards": ["words"], "action": "block"})["changed"] == 0
        assert replayed(admin, {"guards": ["words"], "action": "block"}, last=2)["read"] == 2


def test_what_was_not_recorded_is_counted_apart(tmp_path: Path) -> None:
    with administered(tmp_path) as admin:
        for text in ("Tom", "forbidden"):
            admin.said(text)
        found = replayed(admin, {"guards": ["words", "names"], "action": "block"})
        # whatever a new guard says, the other one still blocks
        assert (found["replayed"], found["changed"], found["not_replayed"]) == (1, 0, 1)
        reason = "no score of the guard 'names' was recorded"
        assert found["reasons"] == [{"reason": reason, "count": 1}]
        other = {"guards": ["words"], "action": "block", "screen": {"look": ["system"]}}
        assert "was not kept" in replayed(admin, other)["reasons"][0]["reason"]


def test_texts_that_were_kept_are_read_again(tmp_path: Path) -> None:
    with administered(tmp_path, KEPT) as admin:
        for text in ("Tom", "hello", "forbidden"):
            admin.said(text)
        found = replayed(admin, {"guards": ["names"], "action": "block", "keep_text": True})
        assert (found["replayed"], found["changed"]) == (3, 2)
        moves = {(each["from"], each["to"]): each["count"] for each in found["transitions"]}
        assert moves == {("pass", "blocked"): 1, ("blocked", "pass"): 1}
        assert {each["source"] for each in found["requests"]} == {"text"}
        # other places of a text can be read, too
        other = {"guards": ["words"], "action": "block", "screen": {"look": ["system"]}}
        assert replayed(admin, other)["transitions"][0]["to"] == "pass"
        # no text is anywhere but in memory
        for path in tmp_path.iterdir():
            assert b"hello" not in path.read_bytes()


def test_texts_are_forgotten_where_the_policy_keeps_none_any_more(tmp_path: Path) -> None:
    with administered(tmp_path, KEPT) as admin:
        admin.said("Tom")
        kept = admin.proxy.app.context.kept
        assert kept is not None and len(kept) == 1
        keeping = {"guards": ["words"], "action": "flag", "keep_text": True}
        admin.put("strict", keeping)
        assert len(kept) == 1
        admin.put("strict", {"guards": ["words"], "action": "block"})
        assert len(kept) == 0
        admin.put("strict", keeping)
        found = replayed(admin, {"guards": ["names"], "action": "block", "keep_text": True})
        assert (found["read"], found["replayed"]) == (1, 0)


def test_an_answer_that_was_read_counts_though_it_was_not_kept(tmp_path: Path) -> None:
    with administered(tmp_path, KEPT, upstream=answering("a forbidden answer")) as admin:
        assert admin.said("hello") == "blocked"
        found = replayed(admin, {"guards": ["words"], "action": "flag", "keep_text": True})
        assert found["transitions"] == [{"from": "blocked", "to": "flagged", "count": 1}]


def test_versions_and_shadows_are_replayed(tmp_path: Path) -> None:
    with administered(tmp_path) as admin:
        admin.put("strict", {"guards": ["words"], "action": "flag"})
        admin.ask("PUT", "strict/shadow", json={"settings": {"guards": ["words", "names"]}})
        for text in ("forbidden", "Tom"):
            admin.said(text)
        earlier = admin.ask("POST", "strict/replay", json={"version": 1}).json()
        assert earlier["transitions"] == [{"from": "flagged", "to": "blocked", "count": 1}]
        shadow = admin.ask("POST", "strict/replay", json={"shadow": True}).json()
        assert shadow["changed"] == 2
        for body in ({}, {"version": 1, "shadow": True}, {"settings": {}, "last": 0}):
            assert admin.ask("POST", "strict/replay", json=body).status_code == 400


def test_the_command_asks_a_running_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "strict.toml"
    file.write_text('guards = ["names"]\naction = "block"\nkeep_text = true\n')
    with administered(tmp_path, KEPT) as admin:
        admin.said("Tom")
        line = ["policy", "replay", str(file), "--url", f"{admin.proxy.url}/v1", "--json"]
        assert "GUARD_ADMIN_KEY is empty" in CliRunner().invoke(app, line).output
        monkeypatch.setenv("GUARD_ADMIN_KEY", "another")
        refused = CliRunner().invoke(app, line)
        assert refused.exit_code == 1 and "Unknown API key" in refused.output
        monkeypatch.setenv("GUARD_ADMIN_KEY", SECRET)
        found = json.loads(CliRunner().invoke(app, line).stdout)
        assert (found["changed"], found["requests"][0]["source"]) == (1, "text")


def test_scores_are_listed(tmp_path: Path) -> None:
    with administered(tmp_path) as admin:
        for text in ("forbidden", "hello"):
            admin.said(text)
        found = admin.ask("GET", "strict/scores").json()
        assert found["read"] == 2
        assert found["guards"] == [{"guard": "words", "threshold": 1.0, "scores": [0.0, 1.0]}]
