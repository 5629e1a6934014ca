"""Anthropic's messages."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from tests.conformance.upstream.answers import TOKENS_IN, TOKENS_OUT, Answer, Asked, pieces


def read(body: dict[str, Any], raw: str) -> Asked:
    blocks = [
        block
        for message in body["messages"]
        if isinstance(message["content"], list)
        for block in message["content"]
    ]
    form = (body.get("output_config") or {}).get("format") or body.get("output_format") or {}
    return Asked(
        raw,
        stream=bool(body.get("stream")),
        functions=tuple(tool["name"] for tool in body.get("tools") or ()),
        has_result=any(block.get("type") == "tool_result" for block in blocks),
        as_json=bool(form),
        usage=True,
    )


def whole(answer: Answer, asked: Asked, model: str) -> dict[str, Any]:
    block = _block(answer)
    if answer.function:
        block["input"] = json.loads(answer.arguments)
    else:
        block["text"] = answer.text
    return {**_message(model, [block]), "stop_reason": _reason(answer), "usage": _usage(TOKENS_OUT)}


def events(answer: Answer, asked: Asked, model: str) -> Iterator[bytes]:
    yield _begin(model)
    yield _event("content_block_start", index=0, content_block=_block(answer))
    yield _event("ping")
    if answer.function:
        yield _delta({"type": "input_json_delta", "partial_json": ""})
    for piece in pieces(answer.arguments if answer.function else answer.text):
        kind = ("input_json_delta", "partial_json") if answer.function else ("text_delta", "text")
        yield _delta({"type": kind[0], kind[1]: piece})
    yield _event("content_block_stop", index=0)
    end = {"stop_reason": _reason(answer), "stop_sequence": None}
    yield _event("message_delta", delta=end, usage={"output_tokens": TOKENS_OUT})
    yield _event("message_stop")


def endless(model: str) -> tuple[bytes, bytes]:
    """How a stream begins, and what it repeats."""
    start = _event("content_block_start", index=0, content_block=_block(Answer()))
    return _begin(model) + start, _delta({"type": "text_delta", "text": "word " * 30})


def error(kind: str, code: str | None, message: str) -> dict[str, Any]:
    return {
        "type": "error",
        "error": {"type": kind, "message": message},
        "request_id": "req_1",
    }


def error_event(kind: str, code: str | None, message: str) -> bytes:
    """An error in the middle of a stream."""
    return _event("error", error={"type": kind, "message": message})


def _begin(model: str) -> bytes:
    return _event("message_start", message={**_message(model, []), "usage": _usage(1)})


def _message(model: str, content: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": content,
        "stop_reason": None,
        "stop_sequence": None,
    }


def _usage(output: int) -> dict[str, Any]:
    return {
        "input_tokens": TOKENS_IN,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "output_tokens": output,
        "service_tier": "standard",
    }


def _block(answer: Answer) -> dict[str, Any]:
    if answer.function:
        return {"type": "tool_use", "id": "toolu_1", "name": answer.function, "input": {}}
    return {"type": "text", "text": ""}


def _reason(answer: Answer) -> str:
    return "tool_use" if answer.function else "end_turn"


def _delta(delta: dict[str, Any]) -> bytes:
    return _event("content_block_delta", index=0, delta=delta)


def _event(kind: str, **values: Any) -> bytes:
    data = json.dumps({"type": kind, **values}, ensure_ascii=False)
    return f"event: {kind}\ndata: {data}\n\n".encode()
