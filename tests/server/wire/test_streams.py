from __future__ import annotations

import json
import socket
from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.screening.streams.formats.base import framed
from server.wire.streams import frame
from tests.server.live_server import Launch, LiveServer, settings


def events(response: httpx.Response) -> list[Any]:
    """The payloads of a stream; checks its framing."""
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.text.endswith("\n\n")
    lines = response.text.removesuffix("\n\n").split("\n\n")
    assert all(line.startswith("data: ") and "\n" not in line for line in lines)
    data = [line.removeprefix("data: ") for line in lines]
    return [line if line == "[DONE]" else json.loads(line) for line in data]


@pytest.mark.parametrize("encode", [frame, framed])
@given(text=st.text() | st.text("\x85\u2028\u2029\n\r\v\f\x1c\x1d\x1e\\a"))
def test_an_event_is_one_line_for_every_reader(
    encode: Callable[[dict[str, Any]], bytes], text: str
) -> None:
    """`str.splitlines`, and httpx's `iter_lines` with it, breaks lines at more than line feeds."""
    line, end = encode({"a": [text]}).decode().splitlines()
    assert (json.loads(line.removeprefix("data: ")), end) == ({"a": [text]}, "")


def test_frames_come_in_openais_order(live: LiveServer) -> None:
    *chunks, done = events(live.chat(stream=True, stream_options={"include_usage": True}))
    assert done == "[DONE]"
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert all(chunk["object"] == "chat.completion.chunk" for chunk in chunks)
    role, *deltas, finish, usage = chunks
    assert role["choices"][0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
    assert [c["choices"][0]["delta"] for c in deltas] == [
        {"content": "Hello"}, {"content": " there"}, {"content": "!"},
    ]  # fmt: skip
    assert all(c["choices"][0]["finish_reason"] is None and "guard" not in c for c in deltas)
    assert finish["choices"][0]["delta"] == {}
    assert finish["choices"][0]["finish_reason"] == "stop"
    assert (
        finish["guard"]
        == finish["choices"][0]["guard"]
        == live.verdicts[0].as_dict() | {"guards": [{**live.verdicts[0].as_dict()["guards"][0]}]}
    )
    assert all(chunk["usage"] is None for chunk in (role, *deltas, finish))
    assert usage["choices"] == [] and usage["usage"]["total_tokens"] == 5


def test_usage_is_sent_only_on_request(live: LiveServer) -> None:
    response = live.chat(stream=True)
    assert all("usage" not in chunk for chunk in events(response)[:-1])
    assert response.headers["X-Guard-Policy"] == "none"
    assert response.headers["X-Request-Id"] == live.verdicts[0].request_id


def test_the_official_client_reads_interleaved_choices(live: LiveServer) -> None:
    texts = {0: "", 1: "", 2: ""}
    verdicts = []
    stream = live.client().chat.completions.create(
        model="fake",
        messages=[{"role": "user", "content": "hi"}],
        stream=True,
        n=3,
        logprobs=True,
    )
    for chunk in stream:
        choice = chunk.choices[0]
        texts[choice.index] += choice.delta.content or ""
        if choice.delta.content:
            assert choice.logprobs is not None and choice.logprobs.content is not None
            assert choice.logprobs.content[0].token == choice.delta.content
        if choice.finish_reason:
            verdicts.append((chunk.model_extra or {})["guard"]["request_id"])
    assert set(texts.values()) == {"Hello there!"}
    assert sorted(verdicts) == sorted(verdict.request_id for verdict in live.verdicts)


def test_an_answer_without_text_still_has_its_role_and_end(live: LiveServer) -> None:
    role, finish, done = events(live.chat("silent", stream=True))
    assert role["choices"][0]["delta"]["role"] == "assistant"
    assert finish["choices"][0]["finish_reason"] == "stop" and done == "[DONE]"


def test_an_error_before_the_first_event_has_its_own_status(live: LiveServer) -> None:
    for text, status in (("blocked", 400), ("failing", 500), ("crash", 500)):
        response = live.chat(text, stream=True)
        assert response.status_code == status
        assert response.headers["content-type"] == "application/json"
        assert "error" in response.json()


@pytest.mark.parametrize("text", ["midway", "crash midway"])
def test_an_error_in_mid_stream_is_an_event_and_the_end(live: LiveServer, text: str) -> None:
    response = live.chat(text, stream=True)
    assert response.status_code == 200
    *_, last = events(response)
    assert last["error"]["type"] == "server_error"
    assert "secret" not in response.text
    with pytest.raises(openai.APIError):
        list(
            live.client().chat.completions.create(
                model="fake", messages=[{"role": "user", "content": text}], stream=True
            )
        )


def disconnect_after(live: LiveServer, body: dict[str, Any], *, seconds: float | None) -> None:
    """Send a chat request and close the socket, after the first bytes or after `seconds`."""
    host, port = live.url.removeprefix("http://").split(":")
    payload = json.dumps({"model": "fake", **body}).encode()
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        connection.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (len(payload), payload)
        )
        if seconds is None:
            assert connection.recv(1)
        else:
            live.wait_until(lambda: bool(live.service.submitted))


@pytest.mark.parametrize(
    ("text", "stream", "seconds"),
    [("slow", True, None), ("stuck", True, 0.1), ("slow", False, 0.1), ("stuck", False, 0.1)],
)
def test_a_disconnect_cancels_all_rows_of_the_request(
    live: LiveServer, text: str, stream: bool, seconds: float | None
) -> None:
    messages = [{"role": "user", "content": text}]
    disconnect_after(live, {"messages": messages, "stream": stream, "n": 2}, seconds=seconds)
    live.wait_until(lambda: len(live.service.cancelled) == 2)
    assert len(live.verdicts) == 2
    assert live.chat().status_code == 200


def test_the_first_failing_row_cancels_its_siblings(live: LiveServer) -> None:
    body = {"model": "fake", "prompt": ["stuck", "blocked"]}
    assert live.post("/v1/completions", json=body).status_code == 400
    assert len(live.service.cancelled) == 1
    assert len(live.verdicts) == 2


def test_a_request_past_its_time_is_ended(launch: Launch) -> None:
    with launch(settings(request_timeout_s=1)) as live:
        response = live.chat("stuck")
        assert response.status_code == 504
        assert response.json()["error"]["code"] == "request_timeout"
        *_, last = events(live.chat("slow", stream=True))
        assert last["error"]["code"] == "request_timeout"
        assert len(live.service.cancelled) == 2


def test_a_stop_lets_short_answers_end_and_ends_long_ones_with_an_error(launch: Launch) -> None:
    with launch(grace_s=0.3) as live:
        with httpx.stream(
            "POST",
            f"{live.url}/v1/chat/completions",
            json={
                "model": "fake",
                "messages": [{"role": "user", "content": "slow"}],
                "stream": True,
            },
        ) as response:
            received = response.iter_lines()
            next(received)
            live.server.should_exit = True
            last = [line for line in received if line][-1]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "service_unavailable"
        assert len(live.verdicts) == 1
    assert live.service.closed >= 1
