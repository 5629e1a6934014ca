"""OpenAI's responses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import count
from typing import Any

from tests.conformance.upstream import chat
from tests.conformance.upstream.answers import TOKENS_IN, TOKENS_OUT, Answer, Asked, pieces

error = chat.error
_USAGE = {
    "input_tokens": TOKENS_IN,
    "input_tokens_details": {"cached_tokens": 0},
    "output_tokens": TOKENS_OUT,
    "output_tokens_details": {"reasoning_tokens": 0},
    "total_tokens": TOKENS_IN + TOKENS_OUT,
}


def read(body: dict[str, Any], raw: str) -> Asked:
    items = body["input"] if isinstance(body["input"], list) else []
    form = (body.get("text") or {}).get("format") or {}
    forced = body.get("tool_choice")
    return Asked(
        raw,
        stream=bool(body.get("stream")),
        functions=tuple(tool["name"] for tool in body.get("tools") or ()),
        has_result=any(item.get("type") == "function_call_output" for item in items),
        as_json=form.get("type", "text") != "text" and not isinstance(forced, dict),
        text=body.get("text"),
        usage=True,
    )


def whole(answer: Answer, asked: Asked, model: str) -> dict[str, Any]:
    response = _response(model, "completed", [_item(answer, done=True)])
    return {**response, "text": asked.text or response["text"]}


def events(answer: Answer, asked: Asked, model: str) -> Iterator[bytes]:
    stream = _Events()
    yield from _begin(stream, model)
    item, place = _item(answer, done=False), {"output_index": 0}
    yield stream("response.output_item.added", **place, item=item)
    place["item_id"] = item["id"]
    if answer.function:
        for piece in pieces(answer.arguments):
            yield stream("response.function_call_arguments.delta", **place, delta=piece)
        arguments = {"name": answer.function, "arguments": answer.arguments}
        yield stream("response.function_call_arguments.done", **place, **arguments)
    else:
        place["content_index"] = 0
        yield stream("response.content_part.added", **place, part=_part(""))
        for piece in pieces(answer.text):
            yield stream("response.output_text.delta", **place, delta=piece, logprobs=[])
        yield stream("response.output_text.done", **place, text=answer.text, logprobs=[])
        yield stream("response.content_part.done", **place, part=_part(answer.text))
    yield stream("response.output_item.done", output_index=0, item=_item(answer, done=True))
    yield stream("response.completed", response=whole(answer, asked, model))


def endless(model: str) -> tuple[bytes, bytes]:
    """How a stream begins, and what it repeats."""
    stream = _Events()
    place = {"output_index": 0, "item_id": "msg_1", "content_index": 0}
    begin = b"".join(_begin(stream, model))
    begin += stream(
        "response.output_item.added", output_index=0, item=_item(Answer(" "), done=False)
    )
    begin += stream("response.content_part.added", **place, part=_part(""))
    return begin, stream("response.output_text.delta", **place, delta="word " * 30, logprobs=[])


def error_event(kind: str, code: str | None, message: str) -> bytes:
    """An error in the middle of a stream, and the end that says so too."""
    stream = _Events()
    failed = {**_response("gpt", "failed", []), "error": {"code": kind, "message": message}}
    event = stream("error", code=code or kind, message=message, param=None)
    return event + stream("response.failed", response=failed)


class _Events:
    """Events of one stream, numbered."""

    def __init__(self) -> None:
        self._numbers = count()

    def __call__(self, kind: str, **values: Any) -> bytes:
        event = {"type": kind, "sequence_number": next(self._numbers), **values}
        return f"event: {kind}\ndata: {json.dumps(event, ensure_ascii=False)}\n\n".encode()


def _begin(stream: _Events, model: str) -> Iterator[bytes]:
    for kind in ("response.created", "response.in_progress"):
        yield stream(kind, response=_response(model, "in_progress", []))


def _response(model: str, status: str, output: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "id": "resp_1",
        "object": "response",
        "created_at": 1_700_000_000,
        "status": status,
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "max_output_tokens": None,
        "model": model,
        "output": output,
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None},
        "store": True,
        "temperature": 1.0,
        "text": {"format": {"type": "text"}, "verbosity": "medium"},
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "truncation": "disabled",
        "usage": _USAGE if status == "completed" else None,
        "user": None,
        "metadata": {},
    }


def _item(answer: Answer, *, done: bool) -> dict[str, Any]:
    status = "completed" if done else "in_progress"
    if answer.function:
        return {
            "id": "fc_1",
            "type": "function_call",
            "status": status,
            "call_id": "call_1",
            "name": answer.function,
            "arguments": answer.arguments if done else "",
        }
    content = [_part(answer.text)] if done else []
    return {
        "id": "msg_1",
        "type": "message",
        "status": status,
        "role": "assistant",
        "content": content,
    }


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "annotations": [], "logprobs": [], "text": text}
