"""Responses as server-sent events, in the framing of each API."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, ClassVar, Protocol

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from guard.errors import GuardError
from server.error_shapes import SentStream
from server.errors import ClientGone, error_event, internal_error
from server.observe.exchange import Exchange
from server.services.interface import Event, FinishedText, TextDelta
from server.services.text_jobs import CollectedText, TextJob, Usage, until_disconnect
from server.services.tools.parser import CallDelta, CallEnd
from server.wire.replies import encode, in_one_line

logger = logging.getLogger(__name__)

DONE = b"data: [DONE]\n\n"


class Reply(Protocol):
    """The response format of one endpoint; a new object for each HTTP request.

    `names_events`: an event has the name of its `type`, and a stream has a last event of its own;
    else events have no names, and `[DONE]` is the last one.
    """

    names_events: ClassVar[bool]

    def whole(self, rows: Sequence[CollectedText], usage: Usage) -> dict[str, Any]:
        """The body of a response without streaming."""

    def opening(self, index: int) -> Sequence[dict[str, Any]]:
        """The events before the first text of row `index`."""

    def delta(self, index: int, delta: TextDelta) -> Sequence[dict[str, Any]]:
        """The events for new text of row `index`."""

    def call(self, index: int, event: CallDelta | CallEnd) -> Sequence[dict[str, Any]]:
        """The events for a part of a call that row `index` makes, or for its end."""

    def finish(self, index: int, finished: FinishedText) -> Sequence[dict[str, Any]]:
        """The last events of row `index`, with its verdict."""

    def usage(self, rows: Sequence[FinishedText], usage: Usage) -> Sequence[dict[str, Any]]:
        """What ends a stream with `include_usage`, with the verdict."""

    def sent(self) -> SentStream:
        """What has left of the stream, as far as an error at its end refers to it."""


def frame(payload: dict[str, Any], name: str = "") -> bytes:
    """One event. Encoded JSON has no line breaks: one `data:` line always holds it."""
    head = f"event: {name}\n".encode() if name else b""
    return head + b"data: " + in_one_line(encode(payload)) + b"\n\n"


class EventStream(Response):
    """Streams the events of `job` in the format of `reply`.

    An error before the first event is raised, so that the response gets its HTTP status; a later
    one ends the stream with an error event and without `[DONE]`. `on_usage` is called at the end.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        job: TextJob,
        reply: Reply,
        exchange: Exchange,
        *,
        include_usage: bool,
        on_usage: Callable[[Usage], None],
    ) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self.job = job
        self.reply = reply
        self.exchange = exchange
        self.include_usage = include_usage
        self.on_usage = on_usage
        self.started = False
        self.open_rows: set[int] = set()
        self.finished: dict[int, FinishedText] = {}
        self._deltas = 0
        self._is_counted = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with suppress(ClientGone):
                await until_disconnect(receive, self._stream(send))
        finally:
            if not self._is_counted:
                # a stream that broke off has used tokens: at least one for each text that has left
                self.exchange.spend(self._deltas)

    async def _stream(self, send: Send) -> None:
        try:
            await self._stream_events(send)
        except GuardError as error:
            if not self.started:
                raise
            last = self._error(error)
        except Exception:
            if not self.started:
                raise
            logger.exception("a stream failed")
            last = self._error(internal_error())
        else:
            last = b"" if self.reply.names_events else DONE
        await send({"type": "http.response.body", "body": last, "more_body": False})

    def _error(self, error: GuardError) -> bytes:
        name, event = error_event(error, self.exchange, self.reply.sent())
        return frame(event, name)

    def _frame(self, event: dict[str, Any]) -> bytes:
        return frame(event, event["type"] if self.reply.names_events else "")

    async def _stream_events(self, send: Send) -> None:
        async with self.job.events() as events:
            async for index, event in events:
                if not self.started:
                    self.started = True
                    await send(
                        {
                            "type": "http.response.start",
                            "status": self.status_code,
                            "headers": self.raw_headers,
                        }
                    )
                if body := b"".join(map(self._frame, self._chunks(index, event))):
                    await send({"type": "http.response.body", "body": body, "more_body": True})

    def _chunks(self, index: int, event: Event) -> Iterator[dict[str, Any]]:
        absent: dict[str, Any] = {"usage": None} if self.include_usage else {}
        if index not in self.open_rows:
            self.open_rows.add(index)
            yield from (chunk | absent for chunk in self.reply.opening(index))
        if isinstance(event, TextDelta):
            self._deltas += 1
            if event.text or event.tokens or event.gates:
                yield from (chunk | absent for chunk in self.reply.delta(index, event))
            return
        if isinstance(event, CallDelta | CallEnd):
            yield from (chunk | absent for chunk in self.reply.call(index, event))
            return
        yield from (chunk | absent for chunk in self.reply.finish(index, event))
        self.finished[index] = event
        if len(self.finished) == len(self.job.requests):
            rows = [self.finished[i] for i in range(len(self.finished))]
            usage = Usage.of(rows, self.job.copies)
            self._is_counted = True
            self.on_usage(usage)
            if self.include_usage:
                yield from self.reply.usage(rows, usage)
