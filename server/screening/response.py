"""The response to a screened request on its way to the client: read, rewritten or refused."""

from __future__ import annotations

import asyncio
import logging
import re
from functools import partial
from typing import Any, Protocol

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import Message, Send

from guard.errors import ContentBlocked, GuardError
from server.errors import error_event, internal_error
from server.observe.exchange import Exchange
from server.screening.answers.upstream_errors import is_of_answer, screen_error, shaped_error
from server.screening.answers.whole import screen_answer
from server.screening.bodies.forms import asks_for_form
from server.screening.bodies.images import PICTURES
from server.screening.bodies.texts import JsonTexts, texts_of
from server.screening.context import ScreeningContext
from server.screening.errors import UnreadableAnswer
from server.screening.findings import Findings, ResponseScreens
from server.screening.images.reading import ImageReader, unread
from server.screening.request import RequestScreening
from server.screening.routes import Route
from server.screening.streams.formats.base import StreamOptions, framed, with_verdict
from server.screening.streams.guard import StreamGuard
from server.screening.streams.sse import BrokenStream
from server.wire.body import media_type
from server.wire.long_work import run_by_size
from server.wire.strict_json import NestedTooDeeply, encode_json, parse_answer

logger = logging.getLogger(__name__)

_NO_BODY = {204, 304}
_KEPT_OF_AN_ERROR = re.compile(
    rb"retry-after(-ms)?|x-should-retry|(x-|anthropic-)?ratelimit-.*|request-id"
)
"""Headers of an error whose body is replaced by a sentence."""


class ResponseOwner(ResponseScreens, ImageReader, Protocol):
    """The exchange that a response belongs to."""

    context: ScreeningContext
    route: Route
    exchange: Exchange
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

    @property
    def has_ended(self) -> bool:
        """Whether all of a streamed response is there, whatever comes of the connection."""
        return self._stream is not None and self._stream.has_ended

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
            if self.has_ended:
                await self._write(b"", more=False)
            else:
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
                self._route.stream_format(self._stream_options()),
                self._findings,
                self._owner,
                self._screening.placeholders,
                choices=self._choices,
                own_app=self._owner.context.own_app,
                event_limit=self._owner.context.max_response_bytes,
            )
        elif _is_json(media) or status >= 400:
            pass
        elif kind != "text" and status < 400 and _is_of_kind(media, kind):
            self._passes_unread = True
            self._findings.unscreened.add(kind)
        elif not self._screening.plan.active:
            self._passes_unread = True  # only JSON and events bring a verdict, which is not shown
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
            if len(self._body) > limit and self._is_error:
                self._is_unreadable_error = True
            if self._is_unreadable_error:
                self._body.clear()
            elif len(self._body) > limit:
                raise UnreadableAnswer(f"The answer is longer than {limit} bytes.")
            if not more and self._is_unreadable_error:
                await self._send_plain_error()
            elif not more:
                await self._screen_body()

    def _stream_options(self) -> StreamOptions:
        asked = self._screening.body.get("stream_options")
        return StreamOptions(
            include_usage=isinstance(asked, dict) and asked.get("include_usage") is True,
            message=self._screening.plan.message,
            has_form=asks_for_form(self._screening.body),
            request_id=self._owner.exchange.request_id,
        )

    @property
    def _is_error(self) -> bool:
        return self._start is not None and int(self._start["status"]) >= 400

    async def _send_plain_error(self) -> None:
        """Send the status of an error that cannot be read, with a sentence for its body."""
        assert self._start is not None
        exchange = self._owner.exchange
        body = shaped_error(None, self._start["status"], exchange)
        raw = encode_json(with_verdict(body, self._owner.guard_object()))
        headers = [h for h in self._start["headers"] if _KEPT_OF_AN_ERROR.fullmatch(h[0].lower())]
        headers += [(b"content-type", b"application/json")]
        headers += [(b"content-length", str(len(raw)).encode())]
        self._start = {**self._start, "headers": headers}
        await self._write(raw, more=False)

    async def _feed_stream(self, stream: StreamGuard, body: bytes, more: bool) -> None:
        out = await stream.feed(body)
        if not more and not stream.is_over:
            out += await stream.end()
            if stream.is_broken_off:
                await self._write(out)
                raise UnreadableAnswer("The answer ends in its middle.")
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
        own_app = self._owner.context.own_app
        try:
            size = len(self._body)
            value, has_duplicates = await run_by_size(size, _value_of, bytes(self._body))
            verdicts = self._owner.take_verdicts(value) if isinstance(value, dict) else None
            read = partial(texts_of, skip_verdicts=own_app)
            texts = await run_by_size(size, read, value, "response")
        except ValueError as error:
            if self._is_error:
                await self._send_plain_error()
                return
            if isinstance(error, NestedTooDeeply):
                raise
            raise UnreadableAnswer("The answer is not valid JSON.") from None
        self._findings.unscreened.update(unread(texts, self._screening.plan))
        # of names that stand twice, the client gets those that were read
        changed = has_duplicates
        if self._is_error:
            if texts.images and self._screening.plan.reads_images("response"):
                self._findings.unscreened.add(PICTURES)
            value = await self._screen_error(value, texts)
        else:
            value, is_rewritten = await screen_answer(value, texts, self._owner)
            changed = changed or is_rewritten
            if not self._screening.plan.reads_images("response"):
                self._findings.unscreened.update(self._route.generates)
        body = bytes(self._body)
        if isinstance(value, dict):
            if verdicts is not None:
                self._owner.put_back(verdicts, value)
            self._give_verdict(value)
            body = encode_json(value)
        elif changed:
            body = encode_json(value)
        MutableHeaders(scope=self._start)["content-length"] = str(len(body))
        await self._write(body, more=False)

    def _give_verdict(self, value: dict[str, Any]) -> None:
        holder = self._route.verdict_holder(value)
        verdict = self._owner.guard_object()
        if holder is not None and verdict is not None:
            holder["guard"] = verdict

    async def _screen_error(self, value: Any, texts: JsonTexts) -> Any:
        """The body of an error that the app answers with, as the client may read it."""
        assert self._start is not None
        own_app, reports = self._owner.context.own_app, self._route.reports_errors
        changed = await screen_error(
            [piece for piece in texts.pieces if reports and not is_of_answer(piece)],
            [piece for piece in texts.pieces if not reports or is_of_answer(piece)],
            self._findings,
            self._owner,
            self._screening.placeholders,
            own_app=own_app,
        )
        texts.write_back()
        if changed is None:
            value = None
        elif own_app:
            return value
        MutableHeaders(scope=self._start)["content-type"] = "application/json"
        return shaped_error(value, self._start["status"], self._owner.exchange)

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
        name, event = error_event(error, self._owner.exchange, self._stream.sent)
        if "guard" not in event:
            event = with_verdict(event, self._owner.guard_object())
        await self._write(framed(event, name), more=False)


def _is_json(media: str) -> bool:
    # a body of no type has to be JSON, or to be empty
    return media == "application/json" or media.endswith("+json") or not media


def _value_of(body: bytes) -> tuple[Any, bool]:
    """The value of an answer, None where it has none, and whether an object in it has a name
    twice. Raises ValueError."""
    return parse_answer(body.decode()) if body else (None, False)


def _is_of_kind(media: str, kind: str) -> bool:
    return media.startswith(f"{kind}/") or media == "application/octet-stream"
