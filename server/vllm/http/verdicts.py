"""Verdicts in the responses of vLLM's HTTP server, as the field `guard`.

JSON bodies have it at their top and in each choice, streams in the event that ends a choice, as in
`guard serve`. Where a guard has ended an answer, the policy's message stands in its place.
"""

from __future__ import annotations

import json
from collections.abc import MutableMapping
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.screening.answers.blocked import block_answer
from server.vllm.http.call import HttpCall, current_call
from server.wire.replies import encode, in_one_line


class VerdictMiddleware:
    """Adds verdicts to JSON bodies and events of requests that have any."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        call = current_call.get()
        if call is None:
            return await self._app(scope, receive, send)
        start: Message | None = None

        async def send_with_verdicts(message: Message) -> None:
            nonlocal start
            if message["type"] == "http.response.start" and _is_json(message):
                # sent later: the content length may change
                start = message
                return
            if message["type"] == "http.response.body" and call.outcome is not None:
                message = _with_verdicts(start, message, call)
            if start is not None:
                opening, start = start, None
                call.exchange.outcome = call.outcome
                await send(opening)
            await send(message)

        await self._app(scope, receive, send_with_verdicts)


def _with_verdicts(
    start: Message | None, message: Message, call: HttpCall
) -> MutableMapping[str, Any]:
    body: bytes = message.get("body", b"")
    if start is None:
        return {**message, "body": _events(body, call)}
    if message.get("more_body") or not (reply := _object(body)):
        return message
    body = encode(_whole(reply, call))
    length = (b"content-length", str(len(body)).encode())
    others = [header for header in start["headers"] if header[0].lower() != b"content-length"]
    start["headers"] = [*others, length]
    return {**message, "body": body}


def _whole(reply: dict[str, Any], call: HttpCall) -> dict[str, Any]:
    """A whole answer with its verdicts."""
    for place, choice in enumerate(reply.get("choices") or ()):
        if (said := call.exchange.message) is not None and choice.get(
            "index", place
        ) in call.blocked:
            answer = {"role": "assistant", "content": said, "refusal": None}
            choice.update({"message": answer} if "message" in choice else {"text": said})
            choice["logprobs"] = None
    route = {"response": "responses", "message": "messages"}.get(
        reply.get("object") or reply.get("type") or ""
    )
    if route is not None and call.blocked:
        reply = _ended(route, reply, call)
    _add_verdicts(reply, call, list(range(len(reply.get("choices") or ()))))
    return reply


def _ended(route: str, reply: dict[str, Any], call: HttpCall) -> dict[str, Any]:
    """An answer of an API without choices which a guard has ended; vLLM tells of that end in its
    others alone."""
    if call.exchange.message is not None:
        return block_answer(route, reply, (), call.exchange.message) or reply
    if route == "messages":
        return {**reply, "stop_reason": "refusal"}
    reason = {"reason": "content_filter"}
    return {**reply, "status": "incomplete", "incomplete_details": reason}


def _events(body: bytes, call: HttpCall) -> bytes:
    """Server-sent events, with verdicts in those that end a choice or the response."""
    if not any(mark in body for mark in _ENDS):
        return body
    lines = body.split(b"\n")
    for number, line in enumerate(lines):
        if line.startswith(b"data: {") and (event := _object(line[6:])):
            if not _end(event, call):
                continue
            lines[number] = b"data: " + in_one_line(encode(event))
            if number and "type" in event and lines[number - 1].startswith(b"event: "):
                lines[number - 1] = b"event: " + event["type"].encode()
    return b"\n".join(lines)


_LAST = {"response.completed", "response.incomplete", "response.failed", "message_delta"}
_ENDS = (b'"finish_reason":"', *(f'"{name}"'.encode() for name in sorted(_LAST)))


def _end(event: dict[str, Any], call: HttpCall) -> bool:
    """Give an event that ends something its verdict; False for all others."""
    choices = event.get("choices") or ()
    ended = [i for i, choice in enumerate(choices) if choice.get("finish_reason")]
    if not ended and event.get("type") not in _LAST:
        return False
    said = call.exchange.message
    for i in ended:
        if said is not None and choices[i].get("index", i) in call.blocked:
            if "delta" in choices[i]:
                choices[i]["delta"] = {"content": said}
            else:
                choices[i]["text"] = said
    if call.blocked and event.get("type") == "response.completed":
        event["type"] = "response.incomplete"
        event["response"] = _ended("responses", event["response"], call)
    if call.blocked and event.get("type") == "message_delta":
        event["delta"] = {**event["delta"], "stop_reason": "refusal"}
    _add_verdicts(event.get("response") or event, call, ended)
    return True


def _add_verdicts(reply: dict[str, Any], call: HttpCall, choices: list[int]) -> None:
    by_choice = call.by_choice
    if not by_choice:  # the client is told nothing
        return
    for i in choices:
        choice = reply["choices"][i]
        if (verdict := by_choice.get(choice.get("index", i))) is not None:
            choice["guard"] = verdict
            reply.setdefault("guard", verdict)
    reply.setdefault("guard", by_choice[min(by_choice)])


def _is_json(start: Message) -> bool:
    headers = [(name.lower(), value) for name, value in start["headers"]]
    return any(
        name == b"content-type" and value.startswith(b"application/json") for name, value in headers
    )


def _object(body: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(body)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
