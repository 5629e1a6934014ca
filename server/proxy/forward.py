"""A request to an upstream and its answer back, piece by piece: plain ASGI over aiohttp.

aiohttp's client was chosen by measurement (`benchmarks/http_clients.py`).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import suppress
from urllib.parse import unquote

import aiohttp
from starlette.types import Message, Receive, Scope, Send
from yarl import URL

from guard.config.schema import ProxyConfig
from guard.errors import GuardError, TooManyRequests
from server.errors import BodyTooLarge, ClientGone
from server.observe.exchange import MODEL, SCOPE_KEY, UPSTREAM, Exchange
from server.proxy.errors import (
    BadPath,
    UpstreamBroken,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from server.proxy.headers import to_client, to_upstream
from server.proxy.upstreams import Upstream, Upstreams

_CLIMBS = re.compile(r"(^|[/\\])\.{1,2}([/\\]|$)")
_ADDED = ("Accept", "Accept-Encoding", "User-Agent", "Content-Type")
_SAFE = {"GET", "HEAD", "OPTIONS"}


class Forwarder:
    """Sends requests on. Open it in the event loop that it is used in.

    Raises GuardError for what fails, also in the middle of an answer: whoever calls ends it then.
    """

    def __init__(self, upstreams: Upstreams, settings: ProxyConfig) -> None:
        self.upstreams, self.settings = upstreams, settings
        self.in_flight = self.waiting = 0
        self._session: aiohttp.ClientSession | None = None
        self._places = asyncio.Semaphore(settings.max_requests)

    async def open(self) -> None:
        """Make the pool of connections."""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=30, ttl_dns_cache=60),
            timeout=aiohttp.ClientTimeout(
                total=None, sock_connect=self.settings.connect_timeout_s, sock_read=None
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
            skip_auto_headers=_ADDED,
        )

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()

    @property
    def session(self) -> aiohttp.ClientSession:
        """The pool; open by now."""
        assert self._session is not None, "open() it first"
        return self._session

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["raw_path"].decode("latin-1") if scope.get("raw_path") else scope["path"]
        # decoded once more than it comes, as a server behind may do
        if _CLIMBS.search(unquote(scope["path"])) or not path.startswith("/"):
            raise BadPath("The path may not have parts that are '.' or '..'.")
        body = await _Body.begin(scope, receive, self.settings.max_body_bytes)
        await self._take_place(body)
        try:
            await self._send_on(scope, path, body, send)
        finally:
            self.in_flight -= 1
            self._places.release()

    async def _take_place(self, body: _Body) -> None:
        """Wait for one. Raises TooManyRequests, and ClientGone where nobody waits any more."""
        if self._places.locked():
            if self.waiting >= self.settings.queue_limit:
                raise TooManyRequests(
                    f"{self.waiting} requests wait here already; try again later.", retry_after=1.0
                )
            self.waiting += 1
            place = asyncio.ensure_future(self._places.acquire())
            gone = asyncio.ensure_future(body.gone())
            try:
                await asyncio.wait((place, gone), return_when=asyncio.FIRST_COMPLETED)
                if not place.done():
                    raise ClientGone("The client hung up while it waited.")
            except BaseException:
                place.cancel()
                await asyncio.gather(place, return_exceptions=True)
                if place.done() and not place.cancelled():
                    self._places.release()
                raise
            finally:
                gone.cancel()
                self.waiting -= 1
        else:
            await self._places.acquire()
        self.in_flight += 1

    async def _send_on(self, scope: Scope, path: str, body: _Body, send: Send) -> None:
        tried: list[Upstream] = []
        while True:
            upstream = self.upstreams.choose(scope.get(MODEL), scope.get(UPSTREAM), tried)
            upstream.breaker.begin()
            upstream.in_flight += 1
            try:
                await self._exchange(upstream, scope, path, body, send)
                return
            except UpstreamUnreachable:
                # nothing has been sent, so that another may be asked
                upstream.breaker.failed()
                tried.append(upstream)
                if body.streamed or scope.get(UPSTREAM) or not self._another(scope, tried):
                    raise
            except (UpstreamBroken, UpstreamTimeout, UpstreamRefused):
                upstream.breaker.failed()
                raise
            except BaseException:
                upstream.breaker.gave_up()
                raise
            finally:
                upstream.in_flight -= 1

    def _another(self, scope: Scope, tried: list[Upstream]) -> bool:
        with suppress(GuardError):
            self.upstreams.choose(scope.get(MODEL), None, tried)
            return True
        return False

    async def _exchange(
        self, upstream: Upstream, scope: Scope, path: str, body: _Body, send: Send
    ) -> None:
        settings = self.settings
        loop = asyncio.get_running_loop()
        over = loop.time() + settings.total_timeout_s
        url = URL(upstream.url(path, scope["query_string"].decode("latin-1")), encoded=True)
        exchange: Exchange = scope[SCOPE_KEY]
        headers = [
            (name.decode("latin-1"), value.decode("latin-1"))
            for name, value in [*to_upstream(scope["headers"]), *upstream.credential]
        ]
        headers.append(("x-request-id", exchange.request_id))
        if body.length is not None and (body.length or scope["method"] not in _SAFE):
            headers.append(("content-length", str(body.length)))
        response: aiohttp.ClientResponse | None = None
        gone = asyncio.ensure_future(body.gone())
        here = asyncio.current_task()
        assert here is not None

        def hang_up(_: object) -> None:
            # whoever waits for the upstream below is woken by that
            here.cancel() if response is None else response.close()

        gone.add_done_callback(hang_up)
        try:
            first = min(over, loop.time() + settings.first_byte_timeout_s)
            async with asyncio.timeout_at(first) as timer:
                response = await self.session.request(
                    scope["method"], url, headers=headers, data=body.data(), allow_redirects=False
                )
                _refuse_credentials(upstream, response)
                await send(
                    {
                        "type": "http.response.start",
                        "status": response.status,
                        "headers": to_client(response.raw_headers),
                    }
                )
                timer.reschedule(min(over, loop.time() + settings.chunk_timeout_s))
                last = b""
                async for chunk in response.content.iter_any():
                    if response.content.at_eof():
                        last = chunk
                        break
                    timer.reschedule(over)  # a slow client is not the upstream's fault
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
                    timer.reschedule(min(over, loop.time() + settings.chunk_timeout_s))
            # nor is it how long screens read an answer that is all here
            await send({"type": "http.response.body", "body": last, "more_body": False})
            # what says of itself that it is overloaded or broken has failed, though it answers
            if response.status in {502, 503, 504}:
                upstream.breaker.failed()
            else:
                upstream.breaker.succeeded()
        except asyncio.CancelledError:
            if gone.done() and not gone.cancelled():
                here.uncancel()
                raise ClientGone("The client hung up before its answer began.") from None
            raise
        except TimeoutError:
            what = "no answer began" if response is None else "the answer did not go on"
            raise UpstreamTimeout(f"The upstream {upstream.name} timed out: {what}.") from None
        except aiohttp.ClientConnectorError as error:
            raise UpstreamUnreachable(
                f"The upstream {upstream.name} cannot be reached: {error.os_error.strerror}."
            ) from None
        except (aiohttp.ServerTimeoutError, aiohttp.ConnectionTimeoutError):
            raise UpstreamUnreachable(
                f"The upstream {upstream.name} cannot be reached: connecting timed out."
            ) from None
        except (aiohttp.ClientError, ConnectionError, ValueError) as error:
            if isinstance(error, ValueError) and response is not None:
                raise  # a mistake of our own, made with the answer
            if body.error is not None:
                raise body.error from None
            if gone.done():
                raise ClientGone("The client hung up before its answer was over.") from None
            raise UpstreamBroken(
                f"The upstream {upstream.name} failed: {type(error).__name__}."
            ) from None
        finally:
            gone.remove_done_callback(hang_up)
            gone.cancel()
            if response is not None:
                # a connection with the rest of an answer in it cannot be used again
                response.release() if response.content.at_eof() else response.close()


def _refuse_credentials(upstream: Upstream, response: aiohttp.ClientResponse) -> None:
    # such an answer may show a part of the credential
    if upstream.credential and response.status in {401, 407}:
        raise UpstreamRefused(
            f"The upstream {upstream.name} does not take the credential it was configured with."
        )


class _Body:
    """A request's body: whole where it came in one piece, else as it comes."""

    def __init__(self, first: bytes, more: bool, length: int | None, receive: Receive, limit: int):
        self.streamed = more
        self.length = length if more else len(first)
        self.error: GuardError | None = None
        self._first, self._receive, self._limit = first, receive, limit
        self._sent = asyncio.Event()
        if not more:
            self._sent.set()

    @classmethod
    async def begin(cls, scope: Scope, receive: Receive, limit: int) -> _Body:
        """Take the first piece. Raises BodyTooLarge and ClientGone."""
        announced = dict(scope["headers"]).get(b"content-length", b"")
        length = int(announced[:20]) if announced.isdigit() else None
        if length is not None and length > limit:
            raise _too_large(limit)
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone("The client hung up while sending its request.")
        first = message.get("body", b"")
        if len(first) > limit:
            raise _too_large(limit)
        return cls(first, message.get("more_body", False), length, receive, limit)

    def data(self) -> bytes | AsyncIterator[bytes] | None:
        """What aiohttp sends."""
        if not self.streamed:
            return self._first or None
        return self._pieces()

    async def gone(self) -> None:
        """Returns when the client has hung up behind its body."""
        await self._sent.wait()
        while True:
            message: Message = await self._receive()
            if message["type"] == "http.disconnect":
                return

    async def _pieces(self) -> AsyncIterator[bytes]:
        size = len(self._first)
        yield self._first
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self.error = ClientGone("The client hung up while sending its request.")
                raise ConnectionResetError
            piece = message.get("body", b"")
            size += len(piece)
            if size > self._limit:
                self.error = _too_large(self._limit)
                raise ConnectionResetError
            if piece:
                yield piece
            if not message.get("more_body", False):
                break
        self._sent.set()


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"The request body is longer than {limit} bytes; send less.")
