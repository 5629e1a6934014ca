"""Screens of text read the calls of the models that this server runs, in each API."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.endpoints.text.test_tools import CHAT_TOOLS, MESSAGES_TOOLS, RESPONSES_TOOLS
from tests.server.live_server import LiveServer
from tests.server.screening.test_middleware import audit_lines, screened

APIS = ["chat", "responses", "messages"]


def ask(live: LiveServer, api: str, stream: bool, text: str = "call") -> httpx.Response:
    asked = [{"role": "user", "content": text}]
    path, body = {
        "chat": ("/v1/chat/completions", {"messages": asked, "tools": CHAT_TOOLS}),
        "responses": ("/v1/responses", {"input": asked, "tools": RESPONSES_TOOLS}),
        "messages": (
            "/v1/messages",
            {"messages": asked, "tools": MESSAGES_TOOLS, "max_tokens": 99},
        ),
    }[api]
    return live.post(path, json={"model": "fake", "stream": stream, **body})


def ends(response: httpx.Response) -> set[str]:
    """The reasons for an end, and what else tells of calls, anywhere in a response."""
    known = {"content_filter", "refusal", "tool_calls", "tool_use", "function_call"}
    return {word for word in known if f'"{word}"' in response.text.replace('"refusal":', "")}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("api", APIS)
def test_arguments_of_a_call_are_read(tmp_path: Path, api: str, stream: bool) -> None:
    with screened(tmp_path, 'block"\nmessage = "No.', words=("Paris",)) as (live, audit):
        response = ask(live, api, stream)
        assert response.status_code == 200
        assert "Paris" not in response.text and "ris" not in response.text.replace("risk", "")
        assert "No." in response.text
        assert ends(response) & {"content_filter", "refusal"}
        (line,) = audit_lines(audit, 1)
        assert line["outcome"] == "blocked"
        told: Any = response.text if stream else response.json()
        if stream:
            last = [e for e in told.split("\n\n") if '"guard":' in e][-1]
            told = json.loads(last.partition("data: ")[2])
        assert told["guard"]["outcome"] == "blocked"


@pytest.mark.parametrize("api", APIS)
def test_a_whole_answer_that_is_blocked_has_no_calls(tmp_path: Path, api: str) -> None:
    with screened(tmp_path, words=("Paris",)) as (live, _):
        response = ask(live, api, False)
        assert not ends(response) & {"tool_calls", "tool_use", "function_call"}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("api", APIS)
def test_calls_that_no_screen_hits_pass(tmp_path: Path, api: str, stream: bool) -> None:
    with screened(tmp_path, words=("London",)) as (live, audit):
        response = ask(live, api, stream)
        assert ends(response) & {"tool_calls", "tool_use", "function_call"}
        assert not ends(response) & {"content_filter"}
        (line,) = audit_lines(audit, 1)
        assert line["outcome"] == "pass"


@pytest.mark.parametrize("api", APIS)
def test_definitions_and_results_of_tools_are_read(tmp_path: Path, api: str) -> None:
    with screened(tmp_path, words=("get_time",)) as (live, _):
        response = ask(live, api, False)
        assert response.status_code == 400
        assert response.headers["x-guard-verdict"] == "blocked"
        assert not live.service.submitted
