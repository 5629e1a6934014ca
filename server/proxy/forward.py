"""Forwarding of a request and its response, chunk by chunk: plain ASGI over aiohttp.

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
from server.observe.exchange import DELEGATED, MODEL, SCOPE_KEY, UPSTREAM, Exchange
from server.proxy.errors import (
    BadPath,
    UpstreamBroken,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from server.proxy.headers import to_client, to_upstream
from server.proxy.upstreams import Upstream, Upstreams

_CLIMBING_SEGMENT = re.compile(r"(^|[/\\])\.{1,2}([/\\]|$)")
_AUTO_HEADERS = ("Accept", "Accept-Encoding", "User-Agent", "Content-Type")
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


class Forwarder:
    """An ASGI app that sends requests on. Open it in the event loop that it is used in.

    Raises GuardError where something fails, also in the middle of a response, which the caller then
    has to end.
    """

    def __init__(self, upstreams: Upstreams, settings: ProxyConfig) -> None:
        self.upstreams, self.settings = upstreams, settings
        self.in_flight = self.waiting = 0
        self._session: aiohttp.ClientSession | None = None
        self._slots = asyncio.Semaphore(settings.max_requests)

    async def open(self) -> None:
        """Open the connection pool."""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=30, ttl_dns_cache=60),
            timeout=aiohttp.ClientTimeout(
                total=None, sock_connect=self.settings.connect_timeout_s, sock_read=None
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
            skip_auto_headers=_AUTO_HEADERS,
        )

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()

    @property
    def session(self) -> aiohttp.ClientSession:
        """The connection pool, which must be open."""
        assert self._session is not None, "open() it first"
        return self._session

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["raw_path"].decode("latin-1") if scope.get("raw_path") else scope["path"]
        # decoded twice, as a server behind may do
        if _CLIMBING_SEGMENT.search(unquote(scope["path"])) or not path.startswith("/"):
            raise BadPath("The path may not have parts that are '.' or '..'.")
        body = await _RequestBody.begin(scope, receive, self.settings.max_body_bytes)
        await self._acquire_slot(body)
        try:
            await self._send_on(scope, path, body, send)
        finally:
            self.in_flight -= 1
            self._slots.release()

    async def _acquire_slot(self, body: _RequestBody) -> None:
        """Wait for a slot.

        Raises TooManyRequests, and ClientGone where the client hangs up meanwhile.
        """
        if self._slots.locked():
            if self.waiting >= self.settings.queue_limit:
                raise TooManyRequests(
                    f"{self.waiting} requests wait here already; try again later.", retry_after=1.0
                )
            self.waiting += 1
            slot = asyncio.ensure_future(self._slots.acquire())
            disconnect = asyncio.ensure_future(body.disconnected())
            try:
                await asyncio.wait((slot, disconnect), return_when=asyncio.FIRST_COMPLETED)
                if not slot.done():
                    raise ClientGone("The client hung up while it waited.")
            except BaseException:
                slot.cancel()
                await asyncio.gather(slot, return_exceptions=True)
                if slot.done() and not slot.cancelled():
                    self._slots.release()
                raise
            finally:
                disconnect.cancel()
                self.waiting -= 1
        else:
            await self._slots.acquire()
        self.in_flight += 1

    async def _send_on(self, scope: Scope, path: str, body: _RequestBody, send: Send) -> None:
        tried: list[Upstream] = []
        while True:
            upstream = self.upstreams.choose(
                scope.get(MODEL), scope.get(UPSTREAM), tried, needs_plugin=_needs_plugin(scope)
            )
            upstream.breaker.begin()
            upstream.in_flight += 1
            try:
                await self._exchange(upstream, scope, path, body, send)
                return
            except UpstreamUnreachable:
                # nothing has been sent, so that another upstream may be tried
                upstream.breaker.failed()
                tried.append(upstream)
                if (
                    body.is_streamed
                    or scope.get(UPSTREAM)
                    or not self._has_alternative(scope, tried)
                ):
                    raise
            except (UpstreamBroken, UpstreamTimeout, UpstreamRefused):
                upstream.breaker.failed()
                raise
            except BaseException:
                upstream.breaker.gave_up()
                raise
            finally:
                upstream.in_flight -= 1

    def _has_alternative(self, scope: Scope, tried: list[Upstream]) -> bool:
        with suppress(GuardError):
            self.upstreams.choose(scope.get(MODEL), None, tried, needs_plugin=_needs_plugin(scope))
            return True
        return False

    async def _exchange(
        self, upstream: Upstream, scope: Scope, path: str, body: _RequestBody, send: Send
    ) -> None:
        settings = self.settings
        loop = asyncio.get_running_loop()
        deadline = loop.time() + settings.total_timeout_s
        url = URL(upstream.url(path, scope["query_string"].decode("latin-1")), encoded=True)
        exchange: Exchange = scope[SCOPE_KEY]
        headers = [
            (name.decode("latin-1"), value.decode("latin-1"))
            for name, value in [*to_upstream(scope["headers"]), *upstream.credential]
        ]
        headers.append(("x-request-id", exchange.request_id))
        if body.length is not None and (body.length or scope["method"] not in SAFE_METHODS):
            headers.append(("content-length", str(body.length)))
        response: aiohttp.ClientResponse | None = None
        disconnect = asyncio.ensure_future(body.disconnected())
        task = asyncio.current_task()
        assert task is not None

        def hang_up(_: object) -> None:
            # wakes the task, which waits for the upstream below
            task.cancel() if response is None else response.close()

        disconnect.add_done_callback(hang_up)
        try:
            first_byte = min(deadline, loop.time() + settings.first_byte_timeout_s)
            async with asyncio.timeout_at(first_byte) as timer:
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
                timer.reschedule(min(deadline, loop.time() + settings.chunk_timeout_s))
                last = b""
                async for chunk in response.content.iter_any():
                    if response.content.at_eof():
                        last = chunk
                        break
                    timer.reschedule(deadline)  # a slow client is not the upstream's fault
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
                    timer.reschedule(min(deadline, loop.time() + settings.chunk_timeout_s))
            # nor is the time that screens take to read a response that is all here
            await send({"type": "http.response.body", "body": last, "more_body": False})
            # an upstream that reports that it is overloaded or broken has failed, though it answers
            if response.status in {502, 503, 504}:
                upstream.breaker.failed()
            else:
                upstream.breaker.succeeded()
        except asyncio.CancelledError:
            if disconnect.done() and not disconnect.cancelled():
                task.uncancel()
                raise ClientGone("The client hung up before its answer began.") from None
            raise
        except TimeoutError:
            reason = "no answer began" if response is None else "the answer did not go on"
            raise UpstreamTimeout(f"The upstream {upstream.name} timed out: {reason}.") from None
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
                raise  # a fault of this server, which screens the response
            if body.error is not None:
                raise body.error from None
            if disconnect.done():
                raise ClientGone("The client hung up before its answer was over.") from None
            raise UpstreamBroken(
                f"The upstream {upstream.name} failed: {type(error).__name__}."
            ) from None
        finally:
            disconnect.remove_done_callback(hang_up)
            disconnect.cancel()
            if response is not None:
                # a connection with the rest of a response in it cannot be reused
                response.release() if response.content.at_eof() else response.close()


def _refuse_credentials(upstream: Upstream, response: aiohttp.ClientResponse) -> None:
    # such a response may show a part of the credential
    if upstream.credential and response.status in {401, 407}:
        raise UpstreamRefused(
            f"The upstream {upstream.name} does not take the credential it was configured with."
        )


class _RequestBody:
    """The body of a request: whole where it came in one chunk, else streamed."""

    def __init__(self, first: bytes, more: bool, length: int | None, receive: Receive, limit: int):
        self.is_streamed = more
        self.length = length if more else len(first)
        self.error: GuardError | None = None
        self._first, self._receive, self._limit = first, receive, limit
        self._sent = asyncio.Event()
        if not more:
            self._sent.set()

    @classmethod
    async def begin(cls, scope: Scope, receive: Receive, limit: int) -> _RequestBody:
        """Receive the first chunk. Raises BodyTooLarge and ClientGone."""
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
        """The body as aiohttp takes it."""
        if not self.is_streamed:
            return self._first or None
        return self._chunks()

    async def disconnected(self) -> None:
        """Returns when the client hangs up after its body."""
        await self._sent.wait()
        while True:
            message: Message = await self._receive()
            if message["type"] == "http.disconnect":
                return

    async def _chunks(self) -> AsyncIterator[bytes]:
        size = len(self._first)
        yield self._first
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self.error = ClientGone("The client hung up while sending its request.")
                raise ConnectionResetError
            chunk = message.get("body", b"")
            size += len(chunk)
            if size > self._limit:
                self.error = _too_large(self._limit)
                raise ConnectionResetError
            if chunk:
                yield chunk
            if not message.get("more_body", False):
                break
        self._sent.set()


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"The request body is longer than {limit} bytes; send less.")


def _needs_plugin(scope: Scope) -> bool:
    return bool(scope.get(DELEGATED))
