"""Streams of each API as an upstream sends them, and the events that a client gets."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import httpx

from tests.server.proxy.stand import Proxy

BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": "m", "messages": [{"role": "user", "content": "hi"}]},
    "/v1/completions": {"model": "m", "prompt": "hi"},
    "/v1/messages": {
        "model": "m",
        "max_tokens": 9,
        "messages": [{"role": "user", "content": "hi"}],
    },
    "/v1/responses": {"model": "m", "input": "hi"},
}
"""A request for each API, by its path."""


def sse(event: dict[str, Any]) -> bytes:
    """An event as messages and responses send it."""
    return f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode()


def message_events(texts: Sequence[str], *, whole: bool = True) -> list[bytes]:
    """A message in these deltas, without its end where it is not `whole`."""
    usage = {"input_tokens": 3, "output_tokens": 1}
    start = {"id": "msg_1", "type": "message", "role": "assistant", "model": "m", "content": []}
    block = {"type": "text", "text": ""}
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": {**start, "stop_reason": None, "usage": usage}},
        {"type": "content_block_start", "index": 0, "content_block": block},
    ]
    for text in texts:
        delta = {"type": "text_delta", "text": text}
        events.append({"type": "content_block_delta", "index": 0, "delta": delta})
    ends: list[dict[str, Any]] = [
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": usage},
        {"type": "message_stop"},
    ]
    return [sse(event) for event in [*events, *(ends if whole else ())]]


def response_events(texts: Sequence[str], *, whole: bool = True) -> list[bytes]:
    """A response in these deltas, without its end where it is not `whole`."""
    base = {"id": "resp_1", "object": "response", "created_at": 1, "model": "m"}
    at: dict[str, Any] = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
    item = {"id": "msg_1", "type": "message", "role": "assistant"}
    part = {"type": "output_text", "text": "", "annotations": []}
    text = "".join(texts)
    done = {**item, "status": "completed", "content": [{**part, "text": text}]}
    open_item = {**item, "status": "in_progress", "content": []}
    started = {**base, "status": "in_progress", "output": []}
    completed = {**base, "status": "completed", "output": [done]}
    events: list[dict[str, Any]] = [
        {"type": "response.created", "response": started},
        {"type": "response.output_item.added", "output_index": 0, "item": open_item},
        {"type": "response.content_part.added", **at, "part": part},
        *(
            {"type": "response.output_text.delta", **at, "delta": each, "logprobs": []}
            for each in texts
        ),
    ]
    ends: list[dict[str, Any]] = [
        {"type": "response.output_text.done", **at, "text": text, "logprobs": []},
        {"type": "response.content_part.done", **at, "part": {**part, "text": text}},
        {"type": "response.output_item.done", "output_index": 0, "item": done},
        {"type": "response.completed", "response": completed},
    ]
    numbered = enumerate([*events, *(ends if whole else ())])
    return [sse({**event, "sequence_number": number}) for number, event in numbered]


def events_of(text: str) -> list[tuple[str, Any]]:
    """The name and the data of each event of a stream."""
    events = []
    for block in text.split("\n\n"):
        name, data = "", None
        for line in block.split("\n"):
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            if line.startswith("data: "):
                data = line.removeprefix("data: ")
        if data is not None:
            events.append((name, data if data == "[DONE]" else json.loads(data)))
    return events


def request(proxy: Proxy, path: str, **more: Any) -> httpx.Response:
    """A request to the API at `path`; `headers` and `policy` are not of its body."""
    headers = dict(more.pop("headers", {}))
    if policy := more.pop("policy", None):
        headers["x-guard-policy"] = policy
    body = {**BODIES[path], **more}
    return httpx.post(proxy.url + path, json=body, headers=headers, timeout=20)
