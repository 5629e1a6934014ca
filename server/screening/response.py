"""The answer of a screened request on its way to the client: read, written over, or refused."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import Message, Send

from guard.errors import ContentBlocked, GuardError
from server.errors import envelope, internal_error
from server.screening.errors import UnreadableAnswer
from server.screening.findings import Findings, blocks, redactions
from server.screening.request import RequestScreening, joined_text
from server.screening.routes import Route
from server.screening.streams.event_queue import without_tokens
from server.screening.streams.formats.base import framed
from server.screening.streams.guard import StreamGuard, TextReader
from server.screening.streams.sse import BrokenStream
from server.screening.texts.json_texts import JsonTexts, TooDeep, texts_of
from server.screening.texts.rewriting import write_over
from server.wire.body import media_type
from server.wire.strict_json import encode_json

logger = logging.getLogger(__name__)

EVENT_LIMIT = 2**20
_NO_BODY = {204, 304}


class ScreenedResponse:
    """The `send` of the app inside; `cut` is set where the rest of its answer is not wanted.

    `head` is called once before the first byte leaves: what is known of the verdict goes into the
    headers then. `verdict` makes the `guard` object from the one that the app inside has made.
    `own_errors`: errors of the app inside are this server's own words, which need no reading.
    """

    def __init__(
        self,
        send: Send,
        route: Route,
        screening: RequestScreening,
        read: TextReader,
        verdict: Callable[[dict[str, Any] | None], dict[str, Any]],
        head: Callable[[], None],
        blocked: Callable[[], ContentBlocked],
        *,
        choices: int,
        limit: int,
        own_errors: bool,
    ) -> None:
        self.cut = asyncio.Event()
        self.gate = asyncio.Event()
        """Closed while it is not known whether the request may be answered."""
        self.gate.set()
        self.error: GuardError | None = None
        """What is to be answered in place of it; nothing has been sent then."""
        self.begun = False
        self.ended = False
        self._send, self._route, self._screening = send, route, screening
        self._read, self._verdict, self._head, self._blocked = read, verdict, head, blocked
        self._choices, self._limit, self._own_errors = choices, limit, own_errors
        plan = screening.plan
        self._reads = bool(plan.answering)
        self._restores = plan.settings.restore
        self._start: Message | None = None
        self._body = bytearray()
        self._stream: StreamGuard | None = None
        self._passes = self._masked = False
        self._lock = asyncio.Lock()
        self._timer: asyncio.TimerHandle | None = None
        self._flushing: set[asyncio.Task[None]] = set()

    @property
    def underway(self) -> bool:
        """Whether an error has to come behind what is there of the answer."""
        return self.begun or self._stream is not None

    @property
    def findings(self) -> Findings:
        return self._screening.findings

    async def send(self, message: Message) -> None:
        """Take one message of the app inside."""
        await self.gate.wait()
        if self.cut.is_set():
            return
        async with self._lock:
            try:
                if message["type"] == "http.response.start":
                    self._begin(message)
                elif message["type"] == "http.response.body":
                    await self._take(message.get("body", b""), message.get("more_body", False))
            except GuardError as error:
                await self._fail(error)
            except (BrokenStream, TooDeep) as error:
                await self._fail(UnreadableAnswer(f"The answer cannot be screened: {error}."))

    def close(self) -> None:
        """The exchange is over, however it went."""
        if self._timer is not None:
            self._timer.cancel()
        for task in self._flushing:
            task.cancel()

    async def abort(self, error: GuardError) -> None:
        """The app inside has failed: what was read of its answer leaves, then the error."""
        if self.ended or self.cut.is_set():
            return
        async with self._lock:
            if self._stream is not None:
                try:
                    await self._out(await self._stream.end())
                except (GuardError, BrokenStream, TooDeep):
                    logger.debug("the rest of a broken stream is dropped")
            await self._fail(error)

    def _begin(self, start: Message) -> None:
        headers = Headers(raw=start["headers"])
        media = media_type(headers)
        coding = headers.get("content-encoding", "identity").lower()
        self._start = start
        if start["status"] in _NO_BODY:
            self._passes = True
            return
        if coding != "identity" and start["status"] >= 400:
            self._masked = True
        elif coding != "identity":
            raise UnreadableAnswer(f"The answer is encoded ({coding[:40]}), so it cannot be read.")
        elif media == "text/event-stream" and self._route.stream is not None:
            self._stream = StreamGuard(
                self._route.stream(),
                self.findings,
                self._read,
                self._verdict,
                self._screening.placeholders,
                reads=self._reads,
                restoring=self._restores,
                choices=self._choices,
                event_limit=EVENT_LIMIT,
            )
        elif media == "application/json" or media.endswith("+json"):
            pass
        elif self._route.answer != "text" and start["status"] < 400 and _is(media, self._route):
            self._passes = True
            self.findings.unscreened.add(self._route.answer)
        elif start["status"] >= 400:
            self._masked = True
        else:
            raise UnreadableAnswer(
                f"The answer is {media[:60] or 'of no type'}, which cannot be screened here."
            )

    async def _take(self, body: bytes, more: bool) -> None:
        if self._passes:
            await self._out(body, more=more)
        elif self._stream is not None:
            await self._stream_on(self._stream, body, more)
        else:
            self._body += body
            if len(self._body) > self._limit:
                raise UnreadableAnswer(f"The answer is longer than {self._limit} bytes.")
            if not more and self._masked:
                await self._mask()
            elif not more:
                await self._whole()

    async def _mask(self) -> None:
        """Tell of an error that cannot be read, or must not leave: its status, and when to come
        back."""
        assert self._start is not None
        status = self._start["status"]
        kept = {b"retry-after"}
        headers = [pair for pair in self._start["headers"] if pair[0].lower() in kept]
        told = envelope(UnreadableAnswer(f"The upstream answered {status}."))
        body = encode_json(told | {"guard": self._verdict(None)})
        headers += [(b"content-type", b"application/json")]
        headers += [(b"content-length", str(len(body)).encode())]
        self._start = {**self._start, "headers": headers}
        await self._out(body, more=False)

    async def _stream_on(self, stream: StreamGuard, body: bytes, more: bool) -> None:
        out = await stream.feed(body)
        if not more and not stream.over:
            out += await stream.end()
        if stream.over:
            self.cut.set()
        await self._out(out, more=more and not stream.over)
        ms = self._screening.plan.settings.hold_back_ms
        if ms is not None and stream.holding and self._timer is None and not self.ended:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(ms / 1000, self._flush_soon)

    def _flush_soon(self) -> None:
        self._timer = None
        task = asyncio.create_task(self._flush())
        self._flushing.add(task)
        task.add_done_callback(self._flushing.discard)

    async def _flush(self) -> None:
        async with self._lock:
            if self._stream is None or self.ended or self.cut.is_set():
                return
            try:
                out = await self._stream.flush()
            except GuardError as error:
                await self._fail(error)
                return
            if self._stream.over:
                self.cut.set()
            await self._out(out, more=not self._stream.over)

    async def _whole(self) -> None:
        """Read an answer that is one JSON value."""
        assert self._start is not None
        failed = self._start["status"] >= 400
        try:
            value = json.loads(self._body.decode()) if self._body else None
            texts = texts_of(value, "response") if value is not None else JsonTexts()
        except (ValueError, RecursionError, TooDeep) as error:
            if failed:
                await self._mask()
                return
            if isinstance(error, TooDeep):
                raise
            raise UnreadableAnswer("The answer is not valid JSON.") from None
        pieces, placeholders = texts.pieces, self._screening.placeholders
        before = [piece.text for piece in pieces]
        self.findings.unscreened.update(texts.opaque)
        reads = self._reads and not (failed and self._own_errors)
        if reads and await self._read_texts(texts):
            if not failed:
                raise self._blocked()
            # what is wrong with a request is for its client to know
            await self._mask()
            return
        if self._restores:
            for piece in pieces:
                write_over(piece, (), placeholders, restoring=True)
        written = any(piece.text != stood for piece, stood in zip(pieces, before, strict=True))
        self.findings.unscreened.update(self._route.makes)
        body = bytes(self._body)
        if isinstance(value, dict):
            if written:
                without_tokens(value)
            value["guard"] = self._verdict(value.get("guard"))
            body = encode_json(value)
        elif written:
            body = encode_json(value)
        MutableHeaders(scope=self._start)["content-length"] = str(len(body))
        await self._out(body, more=False)

    async def _read_texts(self, texts: JsonTexts) -> bool:
        """Cut out of an answer what is to be; True where it must not leave."""
        pieces, placeholders = texts.pieces, self._screening.placeholders
        screens = self._screening.plan.answering
        lists = [screen for screen in screens if screen.head is None]
        single = await self._read([piece.text for piece in pieces], lists)
        for piece, seen in zip(pieces, single, strict=True):
            acting = self.findings.take(seen, piece.path, answer=True)
            # a name cannot be written over
            if blocks(acting) or (piece.is_key and redactions(acting)):
                return True
            write_over(piece, acting, placeholders, restoring=False)
        units = list(texts.units())
        joined = await self._read(list(map(joined_text, units)), screens)
        for unit, seen in zip(units, joined, strict=True):
            if self.findings.take(seen, unit[0].path, answer=True):
                return True  # nor what stands in several strings
        return False

    async def _out(self, body: bytes, *, more: bool = True) -> None:
        if self.ended:
            return
        if not self.begun:
            if not body and more:
                return
            assert self._start is not None
            self.begun = True
            self._head()
            if self._stream is not None:
                del MutableHeaders(scope=self._start)["content-length"]
            await self._send(self._start)
        if body or not more:
            self.ended = not more
            await self._send({"type": "http.response.body", "body": body, "more_body": more})

    async def _fail(self, error: GuardError) -> None:
        self.cut.set()
        if not self.underway:
            self.error = error
            return
        if isinstance(error, UnreadableAnswer):
            self.findings.fail(error.message)
        if self._stream is None:
            raise internal_error() from error  # half an answer has left: the connection is cut
        await self._out(framed(envelope(error)), more=False)


def _is(media: str, route: Route) -> bool:
    return media.startswith(f"{route.answer}/") or media == "application/octet-stream"
