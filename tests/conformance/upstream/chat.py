"""Chat completions, as OpenAI writes them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from tests.conformance.upstream.answers import TOKENS_IN, TOKENS_OUT, Answer, Asked, pieces

_USAGE = {
    "prompt_tokens": TOKENS_IN,
    "completion_tokens": TOKENS_OUT,
    "total_tokens": TOKENS_IN + TOKENS_OUT,
    "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
}
DONE = b"data: [DONE]\n\n"


def read(body: dict[str, Any], raw: str) -> Asked:
    return Asked(
        raw,
        stream=bool(body.get("stream")),
        functions=tuple(tool["function"]["name"] for tool in body.get("tools") or ()),
        has_result=any(message["role"] == "tool" for message in body["messages"]),
        as_json=(body.get("response_format") or {}).get("type", "text") != "text",
        usage=bool((body.get("stream_options") or {}).get("include_usage")),
    )


def whole(answer: Answer, asked: Asked, model: str) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": answer.text or None}
    message |= {"refusal": None, "annotations": []}
    if answer.function:
        message["tool_calls"] = [_call(answer.function, answer.arguments)]
    choice = {
        "index": 0,
        "message": message,
        "logprobs": None,
        "finish_reason": _reason(answer),
    }
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": model,
        "choices": [choice],
        "usage": _USAGE,
        "service_tier": "default",
        "system_fingerprint": "fp_1",
    }


def events(answer: Answer, asked: Asked, model: str) -> Iterator[bytes]:
    yield chunk({"role": "assistant", "content": "", "refusal": None}, model)
    for piece in pieces(answer.text):
        yield chunk({"content": piece}, model)
    if answer.function:
        yield chunk({"tool_calls": [{"index": 0, **_call(answer.function, "")}]}, model)
        for piece in pieces(answer.arguments):
            part = {"index": 0, "function": {"arguments": piece}}
            yield chunk({"tool_calls": [part]}, model)
    yield chunk({}, model, _reason(answer))
    if asked.usage:
        yield _event({**_head(model), "choices": [], "usage": _USAGE})
    yield DONE


def chunk(delta: dict[str, Any], model: str, reason: str | None = None) -> bytes:
    """An event with one choice's delta."""
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
    return _event({**_head(model), "choices": [choice], "usage": None, "obfuscation": "x7"})


def endless(model: str) -> tuple[bytes, bytes]:
    """How a stream begins, and what it repeats."""
    return chunk({"role": "assistant", "content": ""}, model), chunk(
        {"content": "word " * 30}, model
    )


def error(kind: str, code: str | None, message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def error_event(kind: str, code: str | None, message: str) -> bytes:
    """An error in the middle of a stream."""
    return _event(error(kind, code, message))


def _head(model: str) -> dict[str, Any]:
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1_700_000_000,
        "model": model,
        "service_tier": "default",
        "system_fingerprint": "fp_1",
    }


def _call(name: str, arguments: str) -> dict[str, Any]:
    return {"id": "call_1", "type": "function", "function": {"name": name, "arguments": arguments}}


def _reason(answer: Answer) -> str:
    return "tool_calls" if answer.function else "stop"


def _event(value: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n".encode()
