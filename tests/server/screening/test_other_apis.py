"""Screens in front of `guard serve`, in the APIs beside chats: each says so in its own way."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.server.live_server import LiveServer
from tests.server.screening.test_middleware import audit_lines, screened

APIS = ("responses", "messages")


def ask(live: LiveServer, api: str, content: Any, **more: Any) -> httpx.Response:
    body = {"model": "fake", "max_tokens": 20, "messages": [{"role": "user", "content": content}]}
    if api == "responses":
        body = {"model": "fake", "input": [{"role": "user", "content": content}]}
    return httpx.post(f"{live.url}/v1/{api}", json=body | more)


def events(response: httpx.Response) -> list[dict[str, Any]]:
    lines = [line for line in response.text.splitlines() if line.startswith("data: {")]
    return [json.loads(line.removeprefix("data: ")) for line in lines]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("api", APIS)
def test_a_blocked_request_never_reaches_the_model(tmp_path: Path, api: str, stream: bool) -> None:
    with screened(tmp_path) as (live, audit):
        response = ask(live, api, "the forbidden thing", stream=stream)
        assert response.status_code == 400
        assert not live.service.submitted
        error = response.json()["error"]
        if api == "responses":
            assert error["code"] == "content_filter"
        else:
            assert response.json()["type"] == "error"
            assert error["type"] == "invalid_request_error"
        assert response.headers["x-guard-verdict"] == "blocked"
        (line,) = audit_lines(audit, 1)
        assert line["outcome"] == "blocked"


@pytest.mark.parametrize("api", APIS)
def test_a_blocked_answer_is_ended_as_the_api_ends_it(tmp_path: Path, api: str) -> None:
    with screened(tmp_path) as (live, audit):
        response = ask(live, api, "hi")
        assert response.status_code == 200 and "there" not in response.text
        answer = response.json()
        if api == "responses":
            assert answer["status"] == "incomplete"
            assert answer["incomplete_details"] == {"reason": "content_filter"}
        else:
            assert answer["stop_reason"] == "refusal"
        (line,) = audit_lines(audit, 1)
        assert line["outcome"] == "blocked"


@pytest.mark.parametrize("api", APIS)
def test_a_blocked_stream_is_ended_as_the_api_ends_it(tmp_path: Path, api: str) -> None:
    with screened(tmp_path) as (live, audit):
        response = ask(live, api, "hi", stream=True)
        assert response.status_code == 200 and "there" not in response.text
        told = events(response)
        if api == "responses":
            assert told[-1]["type"] == "response.incomplete"
            assert told[-1]["response"]["incomplete_details"] == {"reason": "content_filter"}
        else:
            assert told[-1]["type"] == "message_stop"
            (delta,) = (event for event in told if event["type"] == "message_delta")
            assert delta["delta"]["stop_reason"] == "refusal"
        (line,) = audit_lines(audit, 1)
        assert line["outcome"] == "blocked"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("api", APIS)
def test_an_answer_is_redacted(tmp_path: Path, api: str, stream: bool) -> None:
    with screened(tmp_path, "redact") as (live, audit):
        response = ask(live, api, "hi", stream=stream)
        assert response.status_code == 200
        assert "there" not in response.text and "[BAD_1]" in response.text
        (line,) = audit_lines(audit, 1)
        assert line["outcome"] == "redacted"


@pytest.mark.parametrize("api", APIS)
def test_words_beside_an_image_are_read_and_the_image_is_not(tmp_path: Path, api: str) -> None:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode()
    image: dict[str, Any] = {"type": "input_image", "image_url": f"data:image/png;base64,{data}"}
    words: dict[str, Any] = {"type": "input_text"}
    if api == "messages":
        source = {"type": "base64", "media_type": "image/png", "data": data}
        image, words = {"type": "image", "source": source}, {"type": "text"}
    passes = 'unscreened = ["images"]'
    words_of_lists = ("forbidden thing", data[:12])
    with screened(tmp_path, screen=passes, words=words_of_lists, sees=True) as (live, _):
        blocked = ask(live, api, [image, words | {"text": "the forbidden thing"}])
        assert blocked.status_code == 400 and not live.service.submitted
        fine = ask(live, api, [image, words | {"text": "hi"}])
        assert fine.status_code == 200, fine.text
        assert len(live.service.submitted) == 1
    with screened(tmp_path, words=words_of_lists, sees=True) as (live, _):
        refused = ask(live, api, [image, words | {"text": "hi"}]).json()["error"]
        assert refused["code"] == "unscreened_content"
        assert refused["param"] == {"responses": "input", "messages": "messages"}[api]
