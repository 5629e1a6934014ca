"""Verdicts in the responses of vLLM's HTTP server, as the field `guard`.

JSON bodies have it at their top and in each choice, streams in the event that ends a choice, as in
`guard serve`.
"""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import AsyncGenerator, Mapping, MutableMapping
from contextlib import aclosing
from contextvars import ContextVar
from functools import wraps
from typing import Any

from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from vllm.entrypoints.launchers import app as launcher
from vllm.v1.engine.async_llm import AsyncLLM

from guard.config.schema import Config
from guard.verdict import VerdictDetail, shown
from server.vllm.reload import admin_router
from server.wire.replies import encode


class ReplyVerdicts:
    """The verdicts of one HTTP request, by the number of the choice, as far as clients are told."""

    def __init__(self, detail: VerdictDetail = "full") -> None:
        self.by_choice: dict[int, dict[str, Any]] = {}
        self._detail, self._choices = detail, 0

    def add(self, choice: int, verdict: Mapping[str, Any]) -> None:
        """Add the verdict of a choice."""
        if (guard := shown(verdict, self._detail)) is not None:
            self.by_choice[choice] = guard

    def add_prompt(self, choices: int) -> int:
        """Count the choices of one more prompt; returns the number of its first choice."""
        self._choices += choices
        return self._choices - choices


_current: ContextVar[ReplyVerdicts | None] = ContextVar("reply_verdicts", default=None)


class GuardMiddleware:
    """Adds verdicts to JSON bodies and events of requests that have any."""

    def __init__(self, app: ASGIApp, detail: VerdictDetail = "full") -> None:
        self._app, self._detail = app, detail

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        verdicts = ReplyVerdicts(self._detail)
        token = _current.set(verdicts)
        start: Message | None = None

        async def send_with_verdicts(message: Message) -> None:
            nonlocal start
            if message["type"] == "http.response.start" and _is_json(message):
                # sent later: the content length may change
                start = message
                return
            if message["type"] == "http.response.body" and verdicts.by_choice:
                message = _with_verdicts(start, message, verdicts)
            if start is not None:
                opening, start = start, None
                await send(opening)
            await send(message)

        try:
            await self._app(scope, receive, send_with_verdicts)
        finally:
            _current.reset(token)


def _with_verdicts(
    start: Message | None, message: Message, verdicts: ReplyVerdicts
) -> MutableMapping[str, Any]:
    body: bytes = message.get("body", b"")
    if start is None:
        return {**message, "body": _events(body, verdicts)}
    if message.get("more_body") or not (reply := _object(body)):
        return message
    _add_verdicts(reply, verdicts, list(range(len(reply.get("choices") or ()))))
    body = encode(reply)
    length = (b"content-length", str(len(body)).encode())
    others = [header for header in start["headers"] if header[0].lower() != b"content-length"]
    start["headers"] = [*others, length]
    return {**message, "body": body}


def _events(body: bytes, verdicts: ReplyVerdicts) -> bytes:
    """Server-sent events, with verdicts in those that end a choice or the response."""
    if not any(mark in body for mark in _ENDS):
        return body
    lines = body.split(b"\n")
    for number, line in enumerate(lines):
        if line.startswith(b"data: {") and (event := _object(line[6:])):
            choices = event.get("choices") or ()
            ended = [i for i, choice in enumerate(choices) if choice.get("finish_reason")]
            if ended or event.get("type") in _LAST:
                _add_verdicts(event.get("response") or event, verdicts, ended)
                lines[number] = b"data: " + encode(event)
    return b"\n".join(lines)


_LAST = {"response.completed", "response.incomplete", "response.failed", "message_delta"}
_ENDS = (b'"finish_reason":"', *(f'"{name}"'.encode() for name in sorted(_LAST)))


def _add_verdicts(reply: dict[str, Any], verdicts: ReplyVerdicts, choices: list[int]) -> None:
    by_choice = verdicts.by_choice
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


def patch(config: Config) -> None:
    """Make vLLM's HTTP server return verdicts, and give it the route `/guard/reload`."""
    original_generate = AsyncLLM.generate
    original_middleware = launcher.init_entrypoints_middleware

    @wraps(original_generate)
    def generate(self: Any, *args: Any, **kwargs: Any) -> Any:
        verdicts = _current.get()
        outputs = original_generate(self, *args, **kwargs)
        params = kwargs.get("sampling_params", args[1] if len(args) > 1 else None)
        if verdicts is None or params is None:
            return outputs
        return _collecting(outputs, verdicts, verdicts.add_prompt(params.n))

    def init_entrypoints_middleware(args: Namespace, app: FastAPI, *rest: Any) -> None:
        app.add_middleware(GuardMiddleware, detail=config.server.verdict)
        app.include_router(admin_router(config))
        original_middleware(args, app, *rest)

    AsyncLLM.generate = generate
    launcher.init_entrypoints_middleware = init_entrypoints_middleware


async def _collecting(
    outputs: AsyncGenerator[Any, None], verdicts: ReplyVerdicts, first: int
) -> AsyncGenerator[Any, None]:
    """`outputs` as they come; their verdicts are added to `verdicts`, from choice `first` on."""
    async with aclosing(outputs) as source:
        async for output in source:
            for completion in output.outputs:
                if (verdict := getattr(completion, "guard", None)) is not None:
                    verdicts.add(first + completion.index, verdict)
            yield output
