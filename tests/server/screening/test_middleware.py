"""The screens of text in front of our own server."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from guard.audit import AuditLog
from guard.config.schema import load_config
from tests.server.live_server import LiveServer, live_server

LISTS = """
[[words]]
label = "BAD"
words = ["forbidden thing", "there"]
"""
CONFIG = """
[server]
default_policy = "p"
{server}
[[models]]
name = "fake"
source = "fake"
[[patterns]]
name = "list"
source = "list.toml"
[policies.p]
guards = ["list"]
action = "{action}"
[policies.p.screen]
{screen}
"""


@contextmanager
def standing(
    folder: Path, action: str = "block", screen: str = "", server: str = "", more: str = ""
) -> Iterator[tuple[LiveServer, Path]]:
    """A server under one policy; answers are "Hello there!" unless the question is a script's."""
    (folder / "list.toml").write_text(LISTS)
    path = folder / "config.toml"
    path.write_text(CONFIG.format(action=action, screen=screen, server=server) + more)
    with (
        AuditLog(folder / "audit.jsonl") as audit,
        live_server(config=load_config(path), audit=audit) as live,
    ):
        yield live, folder / "audit.jsonl"


def lines(audit: Path, count: int) -> list[dict[str, Any]]:
    until = time.monotonic() + 5
    while len(found := audit.read_text().splitlines()) < count:
        assert time.monotonic() < until, "an audit line is missing"
        time.sleep(0.01)
    return [json.loads(line) for line in found]


ASKING = 'look = ["user"]'


def test_a_blocked_request_never_reaches_the_model(tmp_path: Path) -> None:
    with standing(tmp_path) as (live, audit):
        answer = live.chat("the forbidden thing")
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "content_filter"
        assert answer.headers["x-guard-verdict"] == "blocked"
        assert not live.service.submitted
        (line,) = lines(audit, 1)
        assert line["outcome"] == "blocked"
        assert line["guards"] == answer.json()["guard"]["guards"]


def test_what_is_wrong_with_a_request_is_told_whatever_it_reads_like(tmp_path: Path) -> None:
    with standing(tmp_path) as (live, _):
        answer = live.chat("hello", model="there")
        assert answer.status_code == 404
        assert "there" in answer.json()["error"]["message"]


def test_models_guards_and_screens_make_one_verdict(tmp_path: Path) -> None:
    with standing(tmp_path, "flag", ASKING) as (live, audit):
        answer = live.chat("forbidden thing")
        guard = answer.json()["guard"]
        assert [each["guard"] for each in guard["guards"]] == ["books", "list"]
        assert guard["outcome"] == "flagged"
        (line,) = lines(audit, 1)
        assert (line["outcome"], line["guards"]) == ("flagged", guard["guards"])
        metrics = httpx.get(f"{live.url}/metrics").text
        assert 'inference_guard_fired_total{action="flag",guard="list"} 1.0' in metrics


def test_each_row_of_a_request_has_a_line_with_what_the_screens_saw(tmp_path: Path) -> None:
    with standing(tmp_path, "flag", ASKING) as (live, audit):
        live.chat("forbidden thing", n=2)
        found = lines(audit, 2)
        assert sorted(line["request_id"].rpartition("/")[2] for line in found) == ["0", "1"]
        assert {line["outcome"] for line in found} == {"flagged"}


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_is_blocked(tmp_path: Path, stream: bool) -> None:
    with standing(tmp_path) as (live, audit):
        answer = live.chat("hi", stream=stream)
        assert "there" not in answer.text
        if stream:
            assert answer.text.endswith("data: [DONE]\n\n")
            assert '"finish_reason":"content_filter"' in answer.text
        else:
            assert answer.status_code == 400
        (line,) = lines(audit, 1)
        assert line["outcome"] == "blocked"


def test_a_client_that_hangs_up_leaves_one_line(tmp_path: Path) -> None:
    with standing(tmp_path, "flag") as (live, audit):
        body = {"model": "fake", "stream": True, "messages": [{"role": "user", "content": "slow"}]}
        with httpx.stream("POST", f"{live.url}/v1/chat/completions", json=body) as answer:
            next(answer.iter_bytes())
        live.wait_until(lambda: bool(live.service.cancelled))
        time.sleep(0.1)
        assert len(lines(audit, 1)) == 1


def test_a_blocked_race_leaves_one_line_and_no_row(tmp_path: Path) -> None:
    with standing(tmp_path, "block", "race = true") as (live, audit):
        answer = live.chat("forbidden thing\nslow")
        assert answer.status_code == 400
        time.sleep(0.2)
        (line,) = lines(audit, 1)
        assert line["outcome"] == "blocked"
        assert len(live.service.submitted) == len(live.service.cancelled)


def test_policies_without_screens_are_left_alone(tmp_path: Path) -> None:
    with standing(tmp_path) as (live, _):
        body = {"model": "fake", "messages": [{"role": "user", "content": "forbidden thing"}]}
        answer = live.post("/v1/chat/completions", json={**body, "guard": {"policy": "none"}})
        assert answer.json()["choices"][0]["message"]["content"] == "Hello there!"
        refused = live.post("/v1/chat/completions", json={**body, "guard": {"policy": "nobody"}})
        assert refused.json()["error"]["code"] == "unknown_policy"
        assert live.post("/v1/chat/completions", content=b"{").status_code == 415


def test_a_screened_request_counts_once_against_the_rate_of_its_key(tmp_path: Path) -> None:
    digest = hashlib.sha256(b"k").hexdigest()
    more = f'[[keys]]\nhash = "sha256:{digest}"\ntenant = "t"\nrequests_per_minute = 2\n'
    with standing(tmp_path, "flag", more=more) as (live, _):
        body = {"model": "fake", "messages": [{"role": "user", "content": "hi"}]}
        headers = {"authorization": "Bearer k"}
        statuses = [
            live.post("/v1/chat/completions", json=body, headers=headers).status_code
            for _ in range(3)
        ]
        assert statuses == [200, 200, 429]
        assert live.post("/v1/chat/completions", json=body).status_code == 401


def test_moderations_in_openais_schema(tmp_path: Path) -> None:
    with standing(tmp_path) as (live, _):
        told = live.client().moderations.create(input=["the forbidden thing", "hello"])
        assert [each.flagged for each in told.results] == [True, False]
        assert live.post("/v1/moderations", json={}).status_code == 400
