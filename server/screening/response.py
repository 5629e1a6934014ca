"""The response to a screened request on its way to the client: read, rewritten or refused."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any, Protocol

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import Message, Send

from guard.errors import ContentBlocked, GuardError
from server.errors import envelope, internal_error
from server.screening.context import ScreeningContext
from server.screening.errors import UnreadableAnswer
from server.screening.findings import Findings, blocks, redactions
from server.screening.request import RequestScreening
from server.screening.routes import Route
from server.screening.streams.event_queue import without_tokens
from server.screening.streams.formats.base import framed
from server.screening.streams.guard import ResponseScreens, StreamGuard
from server.screening.streams.sse import BrokenStream
from server.screening.texts.joins import read_crossing, read_together
from server.screening.texts.json_texts import JsonTexts, texts_of
from server.screening.texts.rewriting import rewrite
from server.wire.body import media_type
from server.wire.long_work import run_by_size
from server.wire.strict_json import NestedTooDeeply, encode_json

logger = logging.getLogger(__name__)

_NO_BODY = {204, 304}
_KEPT_OF_AN_ERROR = {b"retry-after"}


class ResponseOwner(ResponseScreens, Protocol):
    """The exchange that a response belongs to."""

    context: ScreeningContext
    route: Route
    screening: RequestScreening

    def set_headers(self) -> None:
        """Called once before the first byte leaves: the last chance to set headers."""

    def refusal(self) -> ContentBlocked:
        """The error for a blocked response."""


class ScreenedResponse:
    """The `send` of an app whose response is screened, with `choices` that end independently."""

    def __init__(self, send: Send, owner: ResponseOwner, choices: int) -> None:
        self.stopped: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done once the rest of the response is not wanted."""
        self.gate = asyncio.Event()
        """Closed while it is not known whether the request may be answered."""
        self.gate.set()
        self.error: GuardError | None = None
        """The error to be answered in place of the response, of which nothing has been sent."""
        self._send, self._owner, self._choices = send, owner, choices
        self._route, self._screening = owner.route, owner.screening
        self._settings = owner.screening.plan.settings
        self._start: Message | None = None
        self._body = bytearray()
        self._stream: StreamGuard | None = None
        self._passes_unread = self._is_unreadable_error = False
        self._is_started = self._is_finished = False
        self._lock = asyncio.Lock()
        self._flush_timer: asyncio.TimerHandle | None = None
        self._flushes: set[asyncio.Task[None]] = set()

    @property
    def in_progress(self) -> bool:
        """Whether an error has to follow what is there of the response."""
        return self._is_started or self._stream is not None

    async def send(self, message: Message) -> None:
        """Take one ASGI message of the app."""
        await self.gate.wait()
        if self.stopped.done():
            return
        async with self._lock:
            try:
                if message["type"] == "http.response.start":
                    self._take_start(message)
                elif message["type"] == "http.response.body":
                    more = message.get("more_body", False)
                    await self._take_body(message.get("body", b""), more)
            except GuardError as error:
                await self._fail(error)
            except (BrokenStream, NestedTooDeeply) as error:
                await self._fail(UnreadableAnswer(f"The answer cannot be screened: {error}."))

    def stop(self) -> None:
        """The rest of the response is not wanted."""
        if not self.stopped.done():
            self.stopped.set_result(None)

    def close(self) -> None:
        """The exchange is over."""
        if self._flush_timer is not None:
            self._flush_timer.cancel()
        for task in self._flushes:
            task.cancel()

    async def abort(self, error: GuardError) -> None:
        """The app has failed: send what has been read of its response, then the error."""
        if self._is_finished or self.stopped.done():
            return
        async with self._lock:
            if self._stream is not None:
                try:
                    await self._write(await self._stream.end())
                except (GuardError, BrokenStream, NestedTooDeeply):
                    logger.debug("the rest of a broken stream is dropped")
            await self._fail(error)

    @property
    def _findings(self) -> Findings:
        return self._screening.findings

    def _take_start(self, start: Message) -> None:
        headers, status = Headers(raw=start["headers"]), start["status"]
        media = media_type(headers)
        coding = headers.get("content-encoding", "identity").lower()
        kind = self._route.response_kind
        self._start = start
        if status in _NO_BODY:
            self._passes_unread = True
        elif coding != "identity" and status >= 400:
            self._is_unreadable_error = True
        elif coding != "identity":
            raise UnreadableAnswer(f"The answer is encoded ({coding[:40]}), so it cannot be read.")
        elif media == "text/event-stream" and self._route.stream_format is not None:
            self._stream = StreamGuard(
                self._route.stream_format(),
                self._findings,
                self._owner,
                self._screening.placeholders,
                choices=self._choices,
                own_app=self._owner.context.own_app,
                event_limit=self._owner.context.max_response_bytes,
            )
        elif media == "application/json" or media.endswith("+json") or not media:
            pass  # a body of no type has to be JSON, or to be empty
        elif kind != "text" and status < 400 and _is_of_kind(media, kind):
            self._passes_unread = True
            self._findings.unscreened.add(kind)
        elif status >= 400:
            self._is_unreadable_error = True
        else:
            raise UnreadableAnswer(
                f"The answer is {media[:60] or 'of no type'}, which cannot be screened here."
            )

    async def _take_body(self, body: bytes, more: bool) -> None:
        if self._passes_unread:
            await self._write(body, more=more)
        elif self._stream is not None:
            await self._feed_stream(self._stream, body, more)
        else:
            self._body += body
            limit = self._owner.context.max_response_bytes
            if len(self._body) > limit:
                raise UnreadableAnswer(f"The answer is longer than {limit} bytes.")
            if not more and self._is_unreadable_error:
                await self._send_masked_error()
            elif not more:
                await self._screen_body()

    async def _send_masked_error(self) -> None:
        """Replace an error that cannot be read, or must not leave, by its status alone."""
        assert self._start is not None
        masked = envelope(UnreadableAnswer(f"The upstream answered {self._start['status']}."))
        body = encode_json(masked | {"guard": self._owner.guard_object(None)})
        headers = [h for h in self._start["headers"] if h[0].lower() in _KEPT_OF_AN_ERROR]
        headers += [(b"content-type", b"application/json")]
        headers += [(b"content-length", str(len(body)).encode())]
        self._start = {**self._start, "headers": headers}
        await self._write(body, more=False)

    async def _feed_stream(self, stream: StreamGuard, body: bytes, more: bool) -> None:
        out = await stream.feed(body)
        if not more and not stream.is_over:
            out += await stream.end()
        if stream.is_over:
            self.stop()
        await self._write(out, more=more and not stream.is_over)
        timeout_ms = self._settings.hold_back_ms
        if (
            timeout_ms is not None
            and stream.is_holding
            and self._flush_timer is None
            and not self._is_finished
        ):
            loop = asyncio.get_running_loop()
            self._flush_timer = loop.call_later(timeout_ms / 1000, self._start_flush)

    def _start_flush(self) -> None:
        self._flush_timer = None
        task = asyncio.create_task(self._flush())
        self._flushes.add(task)
        task.add_done_callback(self._flushes.discard)

    async def _flush(self) -> None:
        async with self._lock:
            if self._stream is None or self._is_finished or self.stopped.done():
                return
            try:
                out = await self._stream.flush()
            except GuardError as error:
                await self._fail(error)
                return
            if self._stream.is_over:
                self.stop()
            await self._write(out, more=not self._stream.is_over)

    async def _screen_body(self) -> None:
        """Screen a response that is one JSON value, and send it."""
        assert self._start is not None
        is_error = self._start["status"] >= 400
        try:
            own_app = self._owner.context.own_app
            value, texts = await run_by_size(
                len(self._body), _read_answer, bytes(self._body), own_app=own_app
            )
        except (ValueError, RecursionError) as error:
            if is_error:
                await self._send_masked_error()
                return
            if isinstance(error, NestedTooDeeply):
                raise
            raise UnreadableAnswer("The answer is not valid JSON.") from None
        pieces = texts.pieces
        originals = [piece.text for piece in pieces]
        self._findings.unscreened.update(texts.opaque)
        is_trusted = is_error and self._owner.context.own_app
        if self._screening.plan.answering and not is_trusted and await self._screen_texts(texts):
            if not is_error:
                raise self._owner.refusal()
            # an error is for the client to know, at least its status
            await self._send_masked_error()
            return
        if self._settings.restore:
            for piece in pieces:
                rewrite(piece, (), self._screening.placeholders, restore=True)
        texts.write_back()
        is_changed = any(
            piece.text != original for piece, original in zip(pieces, originals, strict=True)
        )
        self._findings.unscreened.update(self._route.generates)
        body = bytes(self._body)
        if isinstance(value, dict):
            if is_changed:
                without_tokens(value)
            holder = self._route.verdict_holder(value)
            if holder is not None:
                holder["guard"] = self._owner.guard_object(holder.get("guard"))
            body = encode_json(value)
        elif is_changed:
            body = encode_json(value)
        MutableHeaders(scope=self._start)["content-length"] = str(len(body))
        await self._write(body, more=False)

    async def _screen_texts(self, texts: JsonTexts) -> bool:
        """Screen and redact the texts of a response; return whether they must not leave."""
        pieces, placeholders = texts.pieces, self._screening.placeholders
        screens = self._screening.plan.answering
        patterns = [screen for screen in screens if screen.head is None]
        results = await self._owner.read([piece.reading for piece in pieces], patterns)
        for piece, piece_results in zip(pieces, results, strict=True):
            acting = self._findings.add(piece_results, piece.path, in_response=True)
            # the name of a member cannot be redacted
            if blocks(acting) or (piece.is_key and redactions(acting)):
                return True
            rewrite(piece, acting, placeholders)
        heads = [screen for screen in screens if screen.head is not None]
        joined = await read_together(self._owner, list(texts.units()), heads)
        joined += await read_crossing(self._owner, pieces, patterns)
        # nor can a match across several strings
        acting_on = [
            self._findings.add(found, first.path, in_response=True) for first, found in joined
        ]
        return any(acting_on)

    async def _write(self, body: bytes, *, more: bool = True) -> None:
        if self._is_finished:
            return
        if not self._is_started:
            if not body and more:
                return
            assert self._start is not None
            self._is_started = True
            self._owner.set_headers()
            if self._stream is not None:
                del MutableHeaders(scope=self._start)["content-length"]
            await self._send(self._start)
        if body or not more:
            self._is_finished = not more
            await self._send({"type": "http.response.body", "body": body, "more_body": more})

    async def _fail(self, error: GuardError) -> None:
        self.stop()
        if not self.in_progress:
            self.error = error
            return
        if isinstance(error, UnreadableAnswer):
            self._findings.fail(error.message)
        if self._stream is None:
            raise internal_error() from error  # half a response has left: the connection is cut
        await self._write(framed(envelope(error)), more=False)


def _read_answer(body: bytes, *, own_app: bool) -> tuple[Any, JsonTexts]:
    """The value of an answer and its texts. Raises ValueError, NestedTooDeeply, TooManyTexts."""
    if not body:
        return None, JsonTexts()
    value = json.loads(body.decode())
    return value, texts_of(value, "response", skip_verdicts=own_app)


def _is_of_kind(media: str, kind: str) -> bool:
    return media.startswith(f"{kind}/") or media == "application/octet-stream"
