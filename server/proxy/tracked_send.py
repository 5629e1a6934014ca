"""A `send` that knows how far an answer has come, and ends it where something fails."""

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
    """A `send` that knows how far an answer has come, and ends it where something fails."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.begun = self.ended = False
        self._events = False
        self._tail = b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.begun = True
            headers = dict(message["headers"])
            self._events = headers.get(b"content-type", b"").startswith(b"text/event-stream")
        elif self._events and message.get("body"):
            self._tail = message["body"][-4:]
        self.ended = message["type"] == "http.response.body" and not message.get("more_body", False)
        await self._send(message)

    async def fail(self, error: GuardError, scope: Scope, receive: Receive) -> None:
        """Answer with the error, or end a stream with it, or leave half an answer as it is: the
        server cuts the connection then, so that nobody takes it for a whole one."""
        if not self.begun:
            if verdict := verdict_of(error):
                exchange_of(Request(scope)).outcome = verdict.outcome
            if not isinstance(error, ClientGone):
                await error_response(error)(scope, receive, self._send)
            return
        whole = not self._tail or self._tail.endswith((b"\n\n", b"\r\r", b"\n\r\n"))
        if self._events and whole and not self.ended:
            last = framed(envelope(error))
            await self._send({"type": "http.response.body", "body": last, "more_body": False})
        elif not isinstance(error, ClientGone):
            logger.warning("an answer was cut: %s", error.message)
