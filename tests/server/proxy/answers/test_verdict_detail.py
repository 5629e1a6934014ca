"""How much of a verdict clients of the proxy are told, and verdicts of an upstream's own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Send

from tests.server.proxy.answers.api_streams import (
    events_of,
    message_events,
    request,
    response_events,
)
from tests.server.proxy.screened import answering, screened, streaming
from tests.server.proxy.stand import (
    Proxy,
    Upstream,
    UpstreamRequest,
    chat_chunk,
    chat_completion,
    proxied,
    send_response,
    served,
)
from tests.server.screen_configs import screen_config, write_list
from tests.server.test_verdict_detail import DETAILS, check_told

CHAT = "/v1/chat/completions"
BOOKS = {
    "guard": "books",
    "concept": "books/forbidden",
    "method": "steer",
    "score": 0.9,
    "threshold": 0.5,
    "fired": True,
    "action": "steer",
}
VERDICT = {
    "request_id": "req-1",
    "model": "m",
    "policy": "their",
    "outcome": "steered",
    "guards": [BOOKS],
    "elapsed_ms": 3.0,
}
FORBIDDEN = [{"role": "user", "content": "the forbidden thing"}]


@contextmanager
def told(folder: Path, upstream: Upstream, detail: str) -> Iterator[Proxy]:
    server = f'verdict = "{detail}"'
    text = screen_config(source=write_list(folder), server=server)
    with served(upstream) as port, proxied(folder, text, port) as proxy:
        yield proxy


def whole(body: Any, status: int = 200) -> Upstream:
    async def respond(request: UpstreamRequest, send: Send) -> None:
        await send_response(send, body, status=status)

    return Upstream(respond)


@pytest.mark.parametrize("detail", DETAILS)
def test_whole_answers_and_errors(tmp_path: Path, detail: str) -> None:
    with told(tmp_path, answering("well"), detail) as proxy:
        for path in (CHAT, "/v1/messages"):
            for more in ({}, {"messages": FORBIDDEN}):
                response = request(proxy, path, **more)
                check_told(response, [response.json()], detail)
        assert all("threshold" in line["guards"][0] for line in proxy.audit_lines(4))
    with told(tmp_path, answering("the forbidden thing"), detail) as proxy:
        response = request(proxy, CHAT)
        assert response.json()["choices"][0]["finish_reason"] == "content_filter"
        check_told(response, [response.json()], detail)
    for body in ({"error": {"message": "no"}}, b"<html>"):
        with told(tmp_path, whole(body, 500), detail) as proxy:
            response = request(proxy, CHAT)
            check_told(response, [response.json()], detail)


@pytest.mark.parametrize("text", ["well", "the forbidden thing"])
@pytest.mark.parametrize("detail", DETAILS)
def test_streams(tmp_path: Path, detail: str, text: str) -> None:
    streams = {
        CHAT: streaming(chat_chunk({"content": text}), chat_chunk({}, end="stop")),
        "/v1/messages": streaming(*message_events([text]), done=False),
        "/v1/responses": streaming(*response_events([text]), done=False),
    }
    for path, upstream in streams.items():
        with told(tmp_path, upstream, detail) as proxy:
            response = request(proxy, path, stream=True)
            check_told(response, [event for _, event in events_of(response.text)], detail)


@pytest.mark.parametrize("detail", DETAILS)
@pytest.mark.parametrize("policy", ["p", "none"])
def test_an_upstreams_own_verdict_is_told_no_more(tmp_path: Path, detail: str, policy: str) -> None:
    chat = {**chat_completion("well"), "guard": VERDICT}
    chat["choices"][0]["guard"] = VERDICT
    chunk = json.loads(chat_chunk({}, end="stop")[6:]) | {"guard": VERDICT}
    chunk["choices"][0]["guard"] = VERDICT
    events = [chat_chunk({"content": "well"}), b"data: " + json.dumps(chunk).encode() + b"\n\n"]
    with told(tmp_path, whole(chat), detail) as proxy:
        response = request(proxy, CHAT, policy=policy)
        check_told(response, [response.json()], detail)
    with told(tmp_path, streaming(*events), detail) as proxy:
        response = request(proxy, CHAT, stream=True, policy=policy)
        check_told(response, [event for _, event in events_of(response.text)], detail)


@pytest.mark.parametrize("stream", [False, True])
def test_an_upstreams_verdict_is_no_text_and_counts(tmp_path: Path, stream: bool) -> None:
    verdict = {**VERDICT, "guards": [{**BOOKS, "guard": "forbidden thing"}]}
    verdict["guards"][0]["guard"] = "joe@home.com"
    chat = {**chat_completion("well"), "guard": verdict}
    chat["choices"][0]["guard"] = verdict
    chunk = json.loads(chat_chunk({}, end="stop")[6:]) | {"guard": verdict}
    events = [chat_chunk({"content": "well"}), b"data: " + json.dumps(chunk).encode() + b"\n\n"]
    with screened(tmp_path, streaming(*events) if stream else whole(chat)) as proxy:
        response = request(proxy, CHAT, stream=stream)
        assert "content_filter" not in response.text
        body = [event for _, event in events_of(response.text)][-2] if stream else response.json()
        assert body["guard"]["outcome"] == "steered"
        assert [guard["guard"] for guard in body["guard"]["guards"]] == ["joe@home.com", "list"]
        assert proxy.audit_lines()[0]["outcome"] == "steered"


def test_a_verdict_without_its_guards_counts_too(tmp_path: Path) -> None:
    short = {"request_id": "req-1", "policy": "their", "outcome": "blocked"}
    body = {"error": {"message": "no", "code": "content_filter"}, "guard": short}
    with screened(tmp_path, whole(body, 400)) as proxy:
        response = request(proxy, CHAT)
        assert response.json()["guard"]["outcome"] == "blocked"
        assert response.headers["x-guard-verdict"] == "blocked"


def test_the_plugins_verdict_in_a_response_becomes_one_with_ours(tmp_path: Path) -> None:
    *events, last = response_events(["well"])
    event = json.loads(last.split(b"data: ")[1])
    event["response"]["guard"] = VERDICT
    events.append(b"data: " + json.dumps(event).encode() + b"\n\n")
    with screened(tmp_path, streaming(*events, done=False)) as proxy:
        *_, (_, last_event) = events_of(request(proxy, "/v1/responses", stream=True).text)
        assert last_event["guard"]["outcome"] == "steered"
        assert "guard" not in last_event["response"]


@pytest.mark.parametrize(
    "guard",
    ["the forbidden thing", {"note": "the forbidden thing"}, {"outcome": "the forbidden thing"}],
)
def test_what_is_called_guard_and_is_no_verdict_is_read(tmp_path: Path, guard: Any) -> None:
    chat = {**chat_completion("well"), "guard": guard}
    with screened(tmp_path, whole(chat)) as proxy:
        response = request(proxy, CHAT)
        assert response.json()["choices"][0]["finish_reason"] == "content_filter"
        assert "forbidden" not in response.text


def test_a_text_in_a_verdict_does_not_leave(tmp_path: Path) -> None:
    verdict = {**VERDICT, "note": "the forbidden thing"}
    verdict["guards"] = [{**BOOKS, "place": "the forbidden thing", "more": "a forbidden thing"}]
    with screened(tmp_path, whole({**chat_completion("well"), "guard": verdict})) as proxy:
        response = request(proxy, CHAT)
        assert response.json()["choices"][0]["finish_reason"] == "stop"
        assert "forbidden thing" not in response.text
