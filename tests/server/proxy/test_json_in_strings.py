"""JSON in strings of requests and answers: the same data is treated alike in each API's shape."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.types import Send

from tests.server.proxy.stand import (
    Proxy,
    Upstream,
    UpstreamRequest,
    proxied,
    send_chunk,
    send_head,
    send_response,
    served,
)

CONFIG = """
[server]
default_policy = "private"
[[patterns]]
name = "personal-data"
source = "personal-data"
[policies.private]
guards = ["personal-data"]
action = "redact"
[policies.private.screen]
restore = true
"""
SECRETS = ("4111111111111111", "078-05-1120", "ann@example.com", "1990-04-12", "3704")
GIVEN = {
    "card": 4111111111111111,
    "note": "numbers:\n078-05-1120\nann@example.com",
    "date_of_birth": "1990-04-12",
    "ibans": ["DE89 3704 0044\n0532 0130 00"],
    "amount": 5,
}
PATHS = {"chat": "/v1/chat/completions", "messages": "/v1/messages", "responses": "/v1/responses"}
APIS = tuple(PATHS)


def asked(api: str, arguments: Any, result: str) -> dict[str, Any]:
    """A request whose history has a call of a tool, and its result."""
    spelled = json.dumps(arguments)
    if api == "chat":
        call = {"id": "c1", "type": "function", "function": {"name": "act", "arguments": spelled}}
        return {
            "model": "m",
            "messages": [
                {"role": "user", "content": "go"},
                {"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "tool_call_id": "c1", "content": result},
            ],
        }
    if api == "responses":
        called = {"type": "function_call", "call_id": "c1", "name": "act", "arguments": spelled}
        output = {"type": "function_call_output", "call_id": "c1", "output": result}
        return {"model": "m", "input": [{"role": "user", "content": "go"}, called, output]}
    use = {"type": "tool_use", "id": "c1", "name": "act", "input": arguments}
    told = {"type": "tool_result", "tool_use_id": "c1", "content": result}
    turns = [("user", "go"), ("assistant", [use]), ("user", [told])]
    messages = [{"role": role, "content": content} for role, content in turns]
    return {"model": "m", "max_tokens": 9, "messages": messages}


def sent_to(api: str, body: Any) -> tuple[Any, str]:
    """Arguments and result as the upstream has them."""
    if api == "chat":
        call, result = body["messages"][1]["tool_calls"][0], body["messages"][2]["content"]
        return json.loads(call["function"]["arguments"]), result
    if api == "responses":
        return json.loads(body["input"][1]["arguments"]), body["input"][2]["output"]
    use, told = (message["content"][0] for message in body["messages"][1:])
    return use["input"], told["content"]


def answer(api: str, arguments: Any) -> dict[str, Any]:
    """An answer that calls a tool."""
    spelled = json.dumps(arguments)
    if api == "chat":
        call = {"id": "c2", "type": "function", "function": {"name": "act", "arguments": spelled}}
        told = {"role": "assistant", "content": None, "tool_calls": [call]}
        return {
            "id": "x",
            "choices": [{"index": 0, "message": told, "finish_reason": "tool_calls"}],
        }
    if api == "responses":
        called = {"type": "function_call", "call_id": "c2", "name": "act", "arguments": spelled}
        return {"id": "r", "object": "response", "status": "completed", "output": [called]}
    use = {"type": "tool_use", "id": "c2", "name": "act", "input": arguments}
    return {"id": "m", "type": "message", "role": "assistant", "content": [use]}


def events(api: str, arguments: Any, size: int) -> Iterator[dict[str, Any]]:
    """The same, streamed in pieces of `size` characters."""
    spelled = json.dumps(arguments)
    pieces = [spelled[at : at + size] for at in range(0, len(spelled), size)]
    if api == "chat":
        for piece in pieces:
            call = {"index": 0, "function": {"arguments": piece}}
            yield {"choices": [{"index": 0, "delta": {"tool_calls": [call]}}]}
        yield {"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]}
    elif api == "responses":
        kind, place = "response.function_call_arguments", {"item_id": "i", "output_index": 0}
        for piece in pieces:
            yield {"type": f"{kind}.delta", **place, "delta": piece}
        yield {"type": f"{kind}.done", **place, "arguments": spelled}
        yield {"type": "response.completed", "response": answer(api, arguments)}
    else:
        yield {"type": "content_block_start", "index": 0, "content_block": {"type": "tool_use"}}
        for piece in pieces:
            delta = {"type": "input_json_delta", "partial_json": piece}
            yield {"type": "content_block_delta", "index": 0, "delta": delta}
        yield {"type": "content_block_stop", "index": 0}
        yield {"type": "message_delta", "delta": {"stop_reason": "tool_use"}}
        yield {"type": "message_stop"}


def called(api: str, got: Any) -> Any:
    """The arguments of an answer."""
    if api == "chat":
        spelled = got["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"]
        return json.loads(spelled)
    return json.loads(got["output"][0]["arguments"]) if api == "responses" else (
        got["content"][0]["input"]
    )  # fmt: skip


def streamed(text: str) -> Any:
    """The arguments of a streamed answer."""
    lines = [line[6:] for line in text.splitlines() if line.startswith("data: {")]
    pieces = []
    for event in map(json.loads, lines):
        for choice in event.get("choices", ()):
            pieces += [c["function"]["arguments"] for c in choice["delta"].get("tool_calls", ())]
        if event.get("type", "").endswith("arguments.delta"):
            pieces.append(event["delta"])
        if event.get("type") == "content_block_delta":
            pieces.append(event["delta"]["partial_json"])
    return json.loads("".join(pieces))


@contextmanager
def echoing(folder: Path, size: int = 7) -> Iterator[tuple[Proxy, Upstream]]:
    """A proxy in front of an upstream that calls the tool with the arguments of the history."""

    async def respond(request: UpstreamRequest, send: Send) -> None:
        api = next(api for api, path in PATHS.items() if request.path == path)
        arguments, _ = sent_to(api, request.json)
        if not request.json.get("stream"):
            await send_response(send, answer(api, arguments))
            return
        await send_head(send)
        for event in events(api, arguments, size):
            await send_chunk(send, f"data: {json.dumps(event)}\n\n".encode())
        await send_chunk(send, b"data: [DONE]\n\n" if api == "chat" else b"", more=False)

    upstream = Upstream(respond)
    with served(upstream) as port, proxied(folder, CONFIG, port) as proxy:
        yield proxy, upstream


def post(proxy: Proxy, api: str, body: Any) -> httpx.Response:
    return httpx.post(proxy.url + PATHS[api], json=body, timeout=20)


@pytest.mark.parametrize("api", APIS)
def test_values_are_cut_out_of_a_request_and_put_back_into_its_answer(
    tmp_path: Path, api: str
) -> None:
    with echoing(tmp_path) as (proxy, upstream):
        body = asked(api, GIVEN, json.dumps({"deep": json.dumps(GIVEN)}))
        whole = post(proxy, api, body)
        assert whole.status_code == 200
        (request,) = upstream.requests
        arguments, result = sent_to(api, request.json)
        assert arguments["amount"] == 5
        assert set(arguments) == set(GIVEN)
        assert json.loads(json.loads(result)["deep"]) == arguments
        assert not [secret for secret in SECRETS if secret in request.body.decode()]
        assert called(api, whole.json()) == GIVEN
        for size in (1, 5, 1000):
            with echoing(tmp_path, size) as (other, _):
                stream = post(other, api, {**body, "stream": True})
                assert streamed(stream.text) == GIVEN


@pytest.mark.parametrize("api", APIS)
def test_a_value_that_is_put_back_does_not_go_on_from_the_one_before_it(
    tmp_path: Path, api: str
) -> None:
    given = {"name": "Ann", "email": "ann@example.com"}
    with echoing(tmp_path) as (proxy, _):
        stream = post(proxy, api, {**asked(api, given, "ok"), "stream": True})
    assert streamed(stream.text) == given
    assert "content_filter" not in stream.text
    assert "refusal" not in stream.text


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("api", APIS)
def test_values_are_cut_out_of_an_answer(tmp_path: Path, api: str, stream: bool) -> None:
    async def respond(request: UpstreamRequest, send: Send) -> None:
        if not stream:
            await send_response(send, answer(api, GIVEN))
            return
        await send_head(send)
        for event in events(api, GIVEN, 3):
            await send_chunk(send, f"data: {json.dumps(event)}\n\n".encode())
        await send_chunk(send, b"", more=False)

    with served(Upstream(respond)) as port, proxied(tmp_path, CONFIG, port) as proxy:
        response = post(proxy, api, {**asked(api, {}, "ok"), "stream": stream})
    assert not [secret for secret in SECRETS if secret in response.text]
    arguments = streamed(response.text) if stream else called(api, response.json())
    assert arguments["amount"] == 5
    assert arguments["note"].startswith("numbers:\n")


@pytest.mark.parametrize("name", ["user", "safety_identifier", "prompt_cache_key"])
def test_names_that_the_protocol_asks_for_are_read(tmp_path: Path, name: str) -> None:
    with echoing(tmp_path) as (proxy, upstream):
        post(proxy, "chat", {**asked("chat", {}, "ok"), name: "ann@example.com"})
        assert upstream.requests[0].json[name] == "[EMAIL_1]"


@pytest.mark.parametrize(
    "message",
    [
        {"role": "ann@example.com", "content": "hi"},
        {"role": "user", "content": "hi", "id": "ann@example.com"},
        {"role": "user", "content": "hi", "name": "ann@example.com"},
        {"role": "tool", "content": "hi", "tool_call_id": "ann@example.com"},
        {"role": "user", "content": [{"type": "ann@example.com", "text": "hi"}]},
        {"role": "user", "content": "hi", "ann@example.com": 1},
    ],
)
def test_any_string_of_a_message_is_read(tmp_path: Path, message: Any) -> None:
    with echoing(tmp_path) as (proxy, upstream):
        body = asked("chat", {}, "ok")
        post(proxy, "chat", {**body, "messages": [*body["messages"], message]})
        assert not [r for r in upstream.requests if b"ann@example.com" in r.body]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt_token_ids", [1, 2, 3]),
        ("input_ids", [[1, 2, 3]]),
        ("chat_template", "{{ 'ann@' ~ 'example.com' }}"),
    ],
)
def test_other_ways_to_spell_a_prompt_need_leave(tmp_path: Path, field: str, value: Any) -> None:
    with echoing(tmp_path) as (proxy, upstream):
        response = post(proxy, "chat", {**asked("chat", {}, "ok"), field: value})
        assert response.json()["error"]["code"] == "unscreened_content"
        assert not upstream.requests
