"""The verdict in what vLLM's HTTP server answers: `guard` beside what the endpoint says.

Whole bodies have it at their top, each of several choices its own; streams in the event that ends a
choice, as `guard serve` does.
"""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import AsyncGenerator, MutableMapping
from contextlib import aclosing
from contextvars import ContextVar
from functools import wraps
from typing import Any

from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from vllm.entrypoints.launchers import app as launcher
from vllm.v1.engine.async_llm import AsyncLLM

from guard.config.schema import Config
from server.vllm.reload import admin_router
from server.wire.replies import encode


class ReplyVerdicts:
    """The verdicts of one HTTP request, by the number of the choice."""

    def __init__(self) -> None:
        self.told: dict[int, dict[str, Any]] = {}
        self._choices = 0

    def expect(self, choices: int) -> int:
        """Another prompt is asked, for so many choices; the number of the first."""
        self._choices += choices
        return self._choices - choices


_answers: ContextVar[ReplyVerdicts | None] = ContextVar("answers", default=None)


class GuardMiddleware:
    """Puts verdicts into JSON bodies and events of requests that have any."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        answers = ReplyVerdicts()
        token = _answers.set(answers)
        start: Message | None = None

        async def pass_on(message: Message) -> None:
            nonlocal start
            if message["type"] == "http.response.start" and _is_json(message):
                # its length may change
                start = message
                return
            if message["type"] == "http.response.body" and answers.told:
                message = _with_verdicts(start, message, answers)
            if start is not None:
                opening, start = start, None
                await send(opening)
            await send(message)

        try:
            await self._app(scope, receive, pass_on)
        finally:
            _answers.reset(token)


def _with_verdicts(
    start: Message | None, message: Message, answers: ReplyVerdicts
) -> MutableMapping[str, Any]:
    body: bytes = message.get("body", b"")
    if start is None:
        return {**message, "body": _events(body, answers)}
    if message.get("more_body") or not (whole := _object(body)):
        return message
    _tell(whole, answers, list(range(len(whole.get("choices") or ()))))
    body = encode(whole)
    length = (b"content-length", str(len(body)).encode())
    kept = [own for own in start["headers"] if own[0].lower() != b"content-length"]
    start["headers"] = [*kept, length]
    return {**message, "body": body}


def _events(body: bytes, answers: ReplyVerdicts) -> bytes:
    """Server-sent events, with verdicts in those that end something."""
    if not any(mark in body for mark in _ENDS):
        return body
    lines = body.split(b"\n")
    for at, line in enumerate(lines):
        if line.startswith(b"data: {") and (event := _object(line[6:])):
            choices = event.get("choices") or ()
            ended = [i for i, own in enumerate(choices) if own.get("finish_reason")]
            if ended or event.get("type") in _LAST:
                _tell(event.get("response") or event, answers, ended)
                lines[at] = b"data: " + encode(event)
    return b"\n".join(lines)


_LAST = {"response.completed", "response.incomplete", "response.failed", "message_delta"}
_ENDS = (b'"finish_reason":"', *(f'"{name}"'.encode() for name in sorted(_LAST)))


def _tell(about: dict[str, Any], answers: ReplyVerdicts, choices: list[int]) -> None:
    told = answers.told
    for i in choices:
        choice = about["choices"][i]
        if (own := told.get(choice.get("index", i))) is not None:
            choice["guard"] = own
            about.setdefault("guard", own)
    about.setdefault("guard", told[min(told)])


def _is_json(start: Message) -> bool:
    headers = [(name.lower(), value) for name, value in start["headers"]]
    return any(
        name == b"content-type" and value.startswith(b"application/json") for name, value in headers
    )


def _object(body: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(body)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def surround(config: Config) -> None:
    """Let vLLM's server tell verdicts, and take an admin's calls."""
    generate, added = AsyncLLM.generate, launcher.init_entrypoints_middleware

    @wraps(generate)
    def asked(self: Any, *args: Any, **kwargs: Any) -> Any:
        answers = _answers.get()
        outputs = generate(self, *args, **kwargs)
        params = kwargs.get("sampling_params", args[1] if len(args) > 1 else None)
        if answers is None or params is None:
            return outputs
        return _listening(outputs, answers, answers.expect(params.n))

    def init_entrypoints_middleware(args: Namespace, app: FastAPI, *rest: Any) -> None:
        app.add_middleware(GuardMiddleware)
        app.include_router(admin_router(config))
        added(args, app, *rest)

    AsyncLLM.generate = asked
    launcher.init_entrypoints_middleware = init_entrypoints_middleware


async def _listening(
    outputs: AsyncGenerator[Any, None], answers: ReplyVerdicts, first: int
) -> AsyncGenerator[Any, None]:
    async with aclosing(outputs) as heard:
        async for output in heard:
            for each in output.outputs:
                if (told := getattr(each, "guard", None)) is not None:
                    answers.told[first + each.index] = told
            yield output
