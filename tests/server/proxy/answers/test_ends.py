"""Errors, and streams that break off, in the shape of the API that was called."""

from __future__ import annotations

import asyncio
import hashlib
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import APIError, OpenAI
from starlette.types import Send

from tests.server.proxy.answers.api_streams import (
    BODIES,
    events_of,
    message_events,
    request,
    response_events,
)
from tests.server.proxy.stand import (
    Proxy,
    Upstream,
    UpstreamRequest,
    chat_chunk,
    proxied,
    send_chunk,
    send_head,
    served,
)
from tests.server.screen_configs import screen_config, write_list

POLICIES = ["none", "p"]
HALVES = {
    "/v1/chat/completions": [chat_chunk({"content": "half"})],
    "/v1/messages": message_events(["half"], whole=False),
    "/v1/responses": response_events(["half"], whole=False),
}


def breaking(events: Sequence[bytes], how: str) -> Upstream:
    """An upstream that stops behind these events: it hangs up, is silent, or says that is all."""

    async def respond(request: UpstreamRequest, send: Send) -> None:
        await send_head(send)
        for event in events:
            await send_chunk(send, event)
        await asyncio.sleep(0.05)
        if how == "silence":
            await asyncio.sleep(30)
        if how == "hangs up":
            raise RuntimeError("the connection is cut")
        await send_chunk(send, b"", more=False)

    return Upstream(respond)


def config(folder: Path) -> str:
    return screen_config(source=write_list(folder)) + "\n[proxy]\nchunk_timeout_s = 0.4\n"


def half_of(proxy: Proxy, path: str, policy: str) -> list[tuple[str, Any]]:
    response = request(proxy, path, stream=True, policy=policy)
    assert response.status_code == 200
    return events_of(response.text)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("how", ["hangs up", "silence", "ends"])
def test_messages_that_break_off_end_with_the_event_error(
    tmp_path: Path, policy: str, how: str
) -> None:
    with (
        served(breaking(HALVES["/v1/messages"], how)) as port,
        proxied(tmp_path, config(tmp_path), port) as proxy,
    ):
        events = half_of(proxy, "/v1/messages", policy)
        assert any("half" in str(event) for _, event in events), "what was read is delivered"
        name, event = events[-1]
        assert name == event["type"] == "error"
        kind = "timeout_error" if how == "silence" else "api_error"
        assert event["error"]["type"] == kind and event["error"]["message"]
        assert event["request_id"].startswith("req-")
        assert proxy.audit_lines()[0]["outcome"] == "error"


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("how", ["hangs up", "silence", "ends"])
def test_responses_that_break_off_end_with_the_response_that_failed(
    tmp_path: Path, policy: str, how: str
) -> None:
    with (
        served(breaking(HALVES["/v1/responses"], how)) as port,
        proxied(tmp_path, config(tmp_path), port) as proxy,
    ):
        events = half_of(proxy, "/v1/responses", policy)
        name, event = events[-1]
        assert name == event["type"] == "response.failed"
        assert event["sequence_number"] == 4
        response = event["response"]
        assert (response["id"], response["status"]) == ("resp_1", "failed")
        assert response["error"]["code"] and response["error"]["message"]
        client = OpenAI(base_url=f"{proxy.url}/v1", api_key="none", max_retries=0)
        stream = client.responses.create(
            model="m", input="hi", stream=True, extra_headers={"x-guard-policy": policy}
        )
        *_, last = stream
        assert last.type == "response.failed" and last.response.error is not None


def test_a_response_that_failed_has_what_was_delivered(tmp_path: Path) -> None:
    with (
        served(breaking(HALVES["/v1/responses"], "hangs up")) as port,
        proxied(tmp_path, config(tmp_path), port) as proxy,
    ):
        _, event = half_of(proxy, "/v1/responses", "p")[-1]
        (item,) = event["response"]["output"]
        assert (item["id"], item["status"]) == ("msg_1", "incomplete")
        assert [part["text"] for part in item["content"]] == ["half"]
        assert event["guard"]["outcome"] == "error"


@pytest.mark.parametrize("policy", POLICIES)
def test_openais_client_raises_on_a_chat_that_breaks_off(tmp_path: Path, policy: str) -> None:
    with (
        served(breaking(HALVES["/v1/chat/completions"], "hangs up")) as port,
        proxied(tmp_path, config(tmp_path), port) as proxy,
    ):
        client = OpenAI(base_url=f"{proxy.url}/v1", api_key="none", max_retries=0)
        stream = client.chat.completions.create(
            model="m",
            messages=[{"role": "user", "content": "hi"}],
            stream=True,
            extra_headers={"x-guard-policy": policy},
        )
        with pytest.raises(APIError) as raised:
            list(stream)
        assert raised.value.code == "upstream_failed"


@pytest.mark.parametrize("policy", POLICIES)
def test_a_response_that_breaks_off_before_it_began_ends_with_an_error(
    tmp_path: Path, policy: str
) -> None:
    with (
        served(breaking([b": wait\n\n"], "hangs up")) as port,
        proxied(tmp_path, config(tmp_path), port) as proxy,
    ):
        name, event = half_of(proxy, "/v1/responses", policy)[-1]
        assert name == event["type"] == "error"
        assert event["code"] == "upstream_failed" and event["sequence_number"] == 0


def test_whole_streams_get_no_other_end(tmp_path: Path) -> None:
    streams = {
        "/v1/messages": message_events(["whole"]),
        "/v1/responses": response_events(["whole"]),
    }
    for path, events in streams.items():
        (folder := tmp_path / path[4:]).mkdir()
        with (
            served(breaking(events, "ends")) as port,
            proxied(folder, config(folder), port) as proxy,
        ):
            bare = request(proxy, path, stream=True, policy="none")
            assert bare.content == b"".join(events)
            read = events_of(request(proxy, path, stream=True, policy="p").text)
            assert len(read) == len(events)
            assert [name for name, event in read if "guard" in event] == [
                {"/v1/messages": "message_delta"}.get(path, "response.completed")
            ]


def _no_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def test_every_error_of_messages_is_as_anthropic_has_it(tmp_path: Path) -> None:
    digest = hashlib.sha256(b"k").hexdigest()
    keys = f'[[keys]]\nhash = "sha256:{digest}"\ntenant = "t"\n'
    limits = "[proxy]\nmax_body_bytes = 2000\n"
    text = screen_config(source=write_list(tmp_path)) + keys + limits
    key = {"authorization": "Bearer k"}
    good = BODIES["/v1/messages"]
    blocked = {**good, "messages": [{"role": "user", "content": "the forbidden thing"}]}
    large = {**good, "system": "x" * 3000}
    with proxied(tmp_path, text, _no_port()) as proxy:

        def post(path: str, body: Any, headers: dict[str, str]) -> httpx.Response:
            return httpx.post(proxy.url + path, json=body, headers=headers)

        path = "/v1/messages"
        cases = [
            (post(path, good, {}), 401, "authentication_error"),
            (post(path, blocked, key), 400, "invalid_request_error"),
            (post(f"{path}/count_tokens", blocked, key), 400, "invalid_request_error"),
            (post(path, good, key | {"x-guard-policy": "other"}), 400, "invalid_request_error"),
            (post(path, good, key | {"x-guard-policy": "none"}), 403, "permission_error"),
            (post(f"{path}/batches", good, key), 403, "permission_error"),
            (post(path, large, key), 413, "request_too_large"),
            (post(path, good, key), 502, "api_error"),
            (httpx.post(proxy.url + path, content=b"{", headers=key), 400, "invalid_request_error"),
        ]
        for response, status, kind in cases:
            told = response.json()
            assert response.status_code == status
            assert told["type"] == "error"
            assert told["error"]["type"] == kind and told["error"]["message"]
            request_id = response.headers["x-request-id"]
            assert told["request_id"] == request_id == response.headers["request-id"]
        assert cases[1][0].json()["guard"]["outcome"] == "blocked"


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("path", list(HALVES))
def test_a_stream_that_was_whole_when_its_connection_broke_is_whole(
    tmp_path: Path, path: str, policy: str
) -> None:
    end = [chat_chunk({}, end="stop"), b"data: [DONE]\n\n"]
    events = {
        "/v1/messages": message_events(["whole"]),
        "/v1/responses": response_events(["whole"]),
    }.get(path, [chat_chunk({"content": "whole"}), *end])
    with (
        served(breaking(events, "hangs up")) as port,
        proxied(tmp_path, config(tmp_path), port) as proxy,
    ):
        got = half_of(proxy, path, policy)
        assert len(got) == len(events)
        assert not [event for name, event in got if name == "error" or "error" in event]
        if policy == "p":
            assert proxy.audit_lines()[0]["outcome"] == "pass", "as its verdict says"
