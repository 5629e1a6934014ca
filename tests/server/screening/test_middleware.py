"""The screens of text in front of `guard serve`."""

from __future__ import annotations

import hashlib
import json
import socket
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
from tests.server.screen_configs import screen_config, write_list

MODEL = '[[models]]\nname = "fake"\nsource = "fake"\n'
USER_ONLY = 'look = ["user"]'


@contextmanager
def screened(
    folder: Path,
    action: str = "block",
    screen: str = "",
    *,
    words: tuple[str, ...] = ("forbidden thing", "there"),
    keys: str = "",
    server: str = "",
    sees: bool = False,
) -> Iterator[tuple[LiveServer, Path]]:
    """A server under one policy, which answers "Hello there!" unless a prompt names a script."""
    path = folder / "config.toml"
    source = write_list(folder, words)
    text = screen_config(action, screen, source=source, server=server)
    path.write_text(text + MODEL + keys)
    with (
        AuditLog(folder / "audit.jsonl") as audit,
        live_server(config=load_config(path), audit=audit, sees=sees) as live,
    ):
        yield live, folder / "audit.jsonl"


def audit_lines(audit: Path, count: int) -> list[dict[str, Any]]:
    until = time.monotonic() + 5
    while len(lines := audit.read_text().splitlines()) < count:
        assert time.monotonic() < until, "an audit line is missing"
        time.sleep(0.01)
    return [json.loads(line) for line in lines]


def test_a_blocked_request_never_reaches_the_model(tmp_path: Path) -> None:
    with screened(tmp_path) as (live, audit):
        response = live.chat("the forbidden thing")
        assert response.status_code == 400
        assert response.json()["error"]["code"] == "content_filter"
        assert response.headers["x-guard-verdict"] == "blocked"
        assert not live.service.submitted
        (line,) = audit_lines(audit, 1)
        assert line["outcome"] == "blocked"
        assert line["guards"] == response.json()["guard"]["guards"]


def test_what_is_wrong_with_a_request_is_told_whatever_it_reads_like(tmp_path: Path) -> None:
    with screened(tmp_path) as (live, _):
        response = live.chat("hello", model="there")
        assert response.status_code == 404
        assert "there" in response.json()["error"]["message"]


def test_models_guards_and_screens_make_one_verdict(tmp_path: Path) -> None:
    with screened(tmp_path, "flag", USER_ONLY) as (live, audit):
        response = live.chat("forbidden thing")
        guard = response.json()["guard"]
        assert [verdict["guard"] for verdict in guard["guards"]] == ["books", "list"]
        assert guard["outcome"] == "flagged"
        (line,) = audit_lines(audit, 1)
        assert (line["outcome"], line["guards"]) == ("flagged", guard["guards"])
        metrics = httpx.get(f"{live.url}/metrics").text
        assert 'inference_guard_fired_total{action="flag",guard="list"} 1.0' in metrics


def test_each_row_of_a_request_has_a_line_with_what_the_screens_saw(tmp_path: Path) -> None:
    with screened(tmp_path, "flag", USER_ONLY) as (live, audit):
        live.chat("forbidden thing", n=2)
        rows = audit_lines(audit, 2)
        assert sorted(row["request_id"].rpartition("/")[2] for row in rows) == ["0", "1"]
        assert {row["outcome"] for row in rows} == {"flagged"}


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_is_blocked(tmp_path: Path, stream: bool) -> None:
    with screened(tmp_path) as (live, audit):
        response = live.chat("hi", stream=stream)
        assert "there" not in response.text
        assert response.status_code == 200
        assert '"finish_reason":"content_filter"' in response.text
        if stream:
            assert response.text.endswith("data: [DONE]\n\n")
        else:
            assert response.json()["choices"][0]["message"]["content"] == ""
            assert response.headers["x-guard-verdict"] == "blocked"
        (line,) = audit_lines(audit, 1)
        assert line["outcome"] == "blocked"


@pytest.mark.parametrize(("script", "words"), [("midway", "NaN"), ("crash midway", "server")])
def test_an_error_in_a_stream_is_told_whatever_its_words(
    tmp_path: Path, script: str, words: str
) -> None:
    with screened(tmp_path, words=(words,)) as (live, _):
        response = live.chat(script, stream=True)
        last = response.text.strip().split("\n\n")[-1]
        assert words in json.loads(last.removeprefix("data: "))["error"]["message"]
        assert "content_filter" not in response.text


@pytest.mark.parametrize("stream", [False, True])
def test_the_verdict_of_this_server_is_not_screened(tmp_path: Path, stream: bool) -> None:
    """The verdict names the request and the guard "books": words that no model wrote."""
    with screened(tmp_path, words=("books", "req_", "steer")) as (live, audit):
        response = live.chat("hi", stream=stream)
        assert response.status_code == 200
        assert "books" in response.text, "the verdict is there to be read"
        assert "content_filter" not in response.text
        (line,) = audit_lines(audit, 1)
        assert [each["fired"] for each in line["guards"] if each["guard"] == "list"] == [False]


def test_a_client_that_hangs_up_leaves_one_line(tmp_path: Path) -> None:
    with screened(tmp_path, "flag") as (live, audit):
        body = {"model": "fake", "stream": True, "messages": [{"role": "user", "content": "slow"}]}
        with httpx.stream("POST", f"{live.url}/v1/chat/completions", json=body) as response:
            next(response.iter_bytes())
        live.wait_until(lambda: bool(live.service.cancelled))
        time.sleep(0.1)
        assert len(audit_lines(audit, 1)) == 1


def test_a_blocked_race_leaves_one_line_and_no_row(tmp_path: Path) -> None:
    with screened(tmp_path, "block", "race = true") as (live, audit):
        response = live.chat("forbidden thing\nslow")
        assert response.status_code == 400
        time.sleep(0.2)
        (line,) = audit_lines(audit, 1)
        assert line["outcome"] == "blocked"
        assert len(live.service.submitted) == len(live.service.cancelled)


def test_policies_without_screens_are_left_alone(tmp_path: Path) -> None:
    with screened(tmp_path) as (live, _):
        body = {"model": "fake", "messages": [{"role": "user", "content": "forbidden thing"}]}
        response = live.post("/v1/chat/completions", json={**body, "guard": {"policy": "none"}})
        assert response.json()["choices"][0]["message"]["content"] == "Hello there!"
        refused = live.post("/v1/chat/completions", json={**body, "guard": {"policy": "nobody"}})
        assert refused.json()["error"]["code"] == "unknown_policy"
        assert live.post("/v1/chat/completions", content=b"{").status_code == 415


def test_a_screened_request_counts_once_against_the_rate_of_its_key(tmp_path: Path) -> None:
    digest = hashlib.sha256(b"k").hexdigest()
    keys = f'[[keys]]\nhash = "sha256:{digest}"\ntenant = "t"\nrequests_per_minute = 2\n'
    with screened(tmp_path, "flag", keys=keys) as (live, _):
        body = {"model": "fake", "messages": [{"role": "user", "content": "hi"}]}
        headers = {"authorization": "Bearer k"}
        statuses = [
            live.post("/v1/chat/completions", json=body, headers=headers).status_code
            for _ in range(3)
        ]
        assert statuses == [200, 200, 429]
        assert live.post("/v1/chat/completions", json=body).status_code == 401


def test_moderations_in_openais_schema(tmp_path: Path) -> None:
    with screened(tmp_path) as (live, _):
        moderation = live.client().moderations.create(input=["the forbidden thing", "hello"])
        assert [result.flagged for result in moderation.results] == [True, False]
        assert live.post("/v1/moderations", json={}).status_code == 400


def test_a_moderation_whose_body_comes_too_slowly_is_ended(tmp_path: Path) -> None:
    head = (
        b"POST /v1/moderations HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        b"content-length: 1000\r\n\r\n{"
    )
    with screened(tmp_path, server="request_timeout_s = 0.3") as (live, _):
        host, port = live.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=5) as connection:
            connection.sendall(head)
            assert b" 408 " in connection.recv(100).splitlines()[0]


@pytest.mark.parametrize(("action", "outcome"), [("redact", "redacted"), ("block", "blocked")])
@pytest.mark.parametrize("stream", [False, True])
def test_no_choice_says_pass_where_the_screens_have_acted(
    tmp_path: Path, action: str, outcome: str, stream: bool
) -> None:
    with screened(tmp_path, action) as (live, _):
        response = live.chat("hi", stream=stream)
        assert "there" not in response.text
        assert '"outcome":"pass"' not in response.text
        assert f'"outcome":"{outcome}"' in response.text


@pytest.mark.parametrize("stream", [False, True])
def test_the_verdicts_of_choices_stay_where_the_screens_have_not(
    tmp_path: Path, stream: bool
) -> None:
    with screened(tmp_path, words=("elsewhere",)) as (live, _):
        text = live.chat("hi", stream=stream).text
        events = [line.removeprefix("data: ") for line in text.split("\n\n") if "{" in line]
        choices = [choice for event in events for choice in json.loads(event)["choices"]]
        assert [c["guard"]["outcome"] for c in choices if "guard" in c] == ["pass"]
