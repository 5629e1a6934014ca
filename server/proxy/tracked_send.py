"""A `send` that tracks how much of a response has left, and ends it where something fails."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from starlette.requests import Request
from starlette.types import Message, Receive, Scope, Send

from guard.errors import GuardError
from server.error_shapes import ANTHROPIC, RESPONSES, ErrorShape, SentStream
from server.errors import ClientGone, error_event, error_response, verdict_of
from server.observe.exchange import Exchange, exchange_of
from server.proxy.errors import UpstreamBroken
from server.screening.streams.formats.base import framed
from server.screening.streams.sse import BrokenStream, EventReader

logger = logging.getLogger(__name__)

_HEAD_BYTES, _TAIL_BYTES = 65_536, 16_384
"""What is kept of the beginning and of the end of a stream of `/v1/responses`."""
_ENDS: Mapping[ErrorShape, Sequence[bytes]] = {
    ANTHROPIC: (b'"message_stop"', b'"error"'),
    RESPONSES: (
        *(b'"response.completed"', b'"response.incomplete"', b'"response.failed"'),
        *(b'"error"', b"[DONE]"),
    ),
}
"""What stands in the last event of a stream, by the API, where it has such an event. In a text the
quotation marks would be escaped."""
_LONGEST_END = 32


class TrackedSend:
    """A `send` that tracks how much of a response has left, and ends it where something fails.
    `before_end` is called before the end of a whole one is sent."""

    def __init__(self, send: Send, exchange: Exchange) -> None:
        self._send, self._exchange = send, exchange
        self.before_end: Callable[[], None] = lambda: None
        self._is_started = self._is_finished = self._is_stream = False
        self._head, self._tail = b"", b""
        # events of the other APIs do not refer to those before them
        keeps = exchange.error_shape is RESPONSES
        self._head_bytes = _HEAD_BYTES if keeps else 0
        self._tail_bytes = _TAIL_BYTES if keeps else _LONGEST_END
        self._ends = _ENDS.get(exchange.error_shape, ())

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._is_started = True
            headers = dict(message["headers"])
            self._is_stream = headers.get(b"content-type", b"").startswith(b"text/event-stream")
            await self._send(message)
            return
        if self._is_stream and (body := message.get("body")):
            self._keep(body)
        is_last = not message.get("more_body", False)
        if is_last and self._is_stream and self._ends:
            # a connection that is closed looks like the end of an answer without a length
            await self._send({**message, "more_body": True})
            raise UpstreamBroken("The upstream hung up before its answer was over.")
        self._is_finished = is_last
        if is_last:
            self.before_end()
        await self._send(message)

    async def fail(self, error: GuardError, scope: Scope, receive: Receive) -> None:
        """Answer with the error, or end a stream with it, or leave half a response as it is: the
        server then cuts the connection, so that no client takes it for a whole one."""
        if not self._is_started:
            if verdict := verdict_of(error):
                exchange_of(Request(scope)).outcome = verdict.outcome
            if not isinstance(error, ClientGone):
                await error_response(error, self._exchange)(scope, receive, self._send)
            return
        if self._is_stream and not self._is_finished and self._has_ended:
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})
            return
        ends_whole = not self._tail or self._tail.endswith((b"\n\n", b"\r\r", b"\n\r\n"))
        if self._is_stream and ends_whole and not self._is_finished:
            name, event = error_event(error, self._exchange, self._sent())
            last = framed(event, name)
            await self._send({"type": "http.response.body", "body": last, "more_body": False})
        elif not isinstance(error, ClientGone):
            logger.warning("a response was cut: %s", error.message)

    @property
    def _has_ended(self) -> bool:
        """Whether all of a stream has left, though its connection broke."""
        is_typed = self._exchange.error_shape in _ENDS and not self._ends
        return is_typed or self._tail.rstrip().endswith(b"data: [DONE]")

    def _keep(self, body: bytes) -> None:
        if len(self._head) < self._head_bytes:
            self._head += body[: self._head_bytes - len(self._head)]
        if self._ends:
            recent = self._tail[-_LONGEST_END:] + body
            if any(end in recent for end in self._ends):
                self._ends = ()  # nothing is missing
        self._tail = (self._tail + body[-self._tail_bytes :])[-self._tail_bytes :]

    def _sent(self) -> SentStream:
        """What has left of a stream of `/v1/responses`."""
        responses = (event.get("response") for event in _events(self._head))
        response = next((each for each in responses if isinstance(each, dict)), None)
        numbers = [event.get("sequence_number") for event in _events(self._tail)]
        known = [number for number in numbers if isinstance(number, int)]
        return SentStream(response, known[-1] if known else -1)


def _events(part: bytes) -> Iterator[dict[str, Any]]:
    """The whole events in a part of a stream, which may begin in the middle of one."""
    reader = EventReader(max(_HEAD_BYTES, _TAIL_BYTES))
    for raw in part.replace(b"\r\n", b"\n").split(b"\n\n"):
        with suppress(BrokenStream, ValueError, RecursionError):
            for sent in reader.feed(raw + b"\n\n"):
                event = json.loads(sent.data or "null")
                if isinstance(event, dict):
                    yield event
