"""A `send` that tracks how much of a response has left, and ends it where something fails."""

from __future__ import annotations

import logging

from starlette.requests import Request
from starlette.types import Message, Receive, Scope, Send

from guard.errors import GuardError
from server.errors import ClientGone, envelope, error_response, verdict_of
from server.observe.exchange import exchange_of
from server.screening.streams.formats.base import framed

logger = logging.getLogger(__name__)


class TrackedSend:
    """A `send` that tracks how much of a response has left, and ends it where something fails."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._is_started = self._is_finished = self._is_stream = False
        self._tail = b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._is_started = True
            headers = dict(message["headers"])
            self._is_stream = headers.get(b"content-type", b"").startswith(b"text/event-stream")
        elif self._is_stream and message.get("body"):
            self._tail = message["body"][-4:]
        is_body = message["type"] == "http.response.body"
        self._is_finished = is_body and not message.get("more_body", False)
        await self._send(message)

    async def fail(self, error: GuardError, scope: Scope, receive: Receive) -> None:
        """Answer with the error, or end a stream with it, or leave half a response as it is: the
        server then cuts the connection, so that no client takes it for a whole one."""
        if not self._is_started:
            if verdict := verdict_of(error):
                exchange_of(Request(scope)).outcome = verdict.outcome
            if not isinstance(error, ClientGone):
                await error_response(error)(scope, receive, self._send)
            return
        ends_whole = not self._tail or self._tail.endswith((b"\n\n", b"\r\r", b"\n\r\n"))
        if self._is_stream and ends_whole and not self._is_finished:
            last = framed(envelope(error))
            await self._send({"type": "http.response.body", "body": last, "more_body": False})
        elif not isinstance(error, ClientGone):
            logger.warning("a response was cut: %s", error.message)
