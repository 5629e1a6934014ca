"""Forwarding of a request and its response, chunk by chunk: plain ASGI over aiohttp.

aiohttp's client was chosen by measurement (`benchmarks/http_clients.py`).
"""

from __future__ import annotations

import asyncio
import errno
import logging
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import unquote

import aiohttp
from starlette.types import Receive, Scope, Send
from yarl import URL

from guard.config.proxy_schema import ProxyConfig
from guard.errors import GuardError, TooManyRequests
from server.errors import ClientGone, Overloaded, SlowRequest
from server.observe.exchange import CLIENT, DELEGATED, MODEL, SCOPE_KEY, UPSTREAM, Exchange
from server.observe.tracing import PROPAGATED
from server.proxy.errors import (
    BadPath,
    UpstreamBroken,
    UpstreamRedirects,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from server.proxy.forwarding.headers import to_client, to_upstream
from server.proxy.forwarding.health import answers
from server.proxy.forwarding.moving_timeout import MovingTimeout
from server.proxy.forwarding.request_body import ForwardedBody, ignore_turn
from server.proxy.forwarding.upstreams import Upstream, Upstreams

logger = logging.getLogger(__name__)

_CLIMBING_SEGMENT = re.compile(r"(^|[/\\])\.{1,2}([/\\]|$)")
_AUTO_HEADERS = ("Accept", "Accept-Encoding", "User-Agent", "Content-Type")
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_FAILED = frozenset({502, 503, 504})
"""The statuses of an upstream that is overloaded or broken, though it answers."""


@dataclass(slots=True)
class _Attempt:
    """One request to one upstream; `answers`: see `Breaker.doubt`."""

    answers: int
    waits_for_client: bool = False
    has_failed: bool = False


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
        self._probes: dict[Upstream, asyncio.Task[None]] = {}

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
        for probe in self._probes.values():
            probe.cancel()
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
        body = await ForwardedBody.begin(
            scope, receive, self.settings.max_body_bytes, self.settings.chunk_timeout_s
        )
        await self._acquire_slot(body)
        try:
            await self._send_on(scope, path, body, send)
        finally:
            self.in_flight -= 1
            self._slots.release()

    async def _acquire_slot(self, body: ForwardedBody) -> None:
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

    async def _send_on(self, scope: Scope, path: str, body: ForwardedBody, send: Send) -> None:
        tried: list[Upstream] = []
        while True:
            upstream = self.upstreams.choose(
                scope.get(MODEL), scope.get(UPSTREAM), tried, needs_plugin=_needs_plugin(scope)
            )
            attempt = _Attempt(upstream.breaker.begin())
            upstream.in_flight += 1
            try:
                with scope[SCOPE_KEY].trace.upstream(upstream.name) as traced:
                    await self._exchange(upstream, attempt, scope, path, body, send, traced)
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
            except UpstreamBroken:
                if not attempt.has_failed:
                    upstream.breaker.failed()
                raise
            except UpstreamTimeout:
                if upstream.breaker.doubt(attempt.answers, scope.get(CLIENT, "")):
                    self._probe(upstream)
                raise
            except BaseException:
                upstream.breaker.gave_up()
                raise
            finally:
                upstream.in_flight -= 1

    def _probe(self, upstream: Upstream) -> None:
        """Ask an upstream that one client had to wait for whether it is there at all."""
        if upstream in self._probes:
            return

        async def probe() -> None:
            if await answers(self.session, upstream):
                upstream.breaker.answered()
                upstream.breaker.succeeded()
            else:
                upstream.breaker.failed()

        task = self._probes[upstream] = asyncio.create_task(probe())
        task.add_done_callback(lambda _: self._probes.pop(upstream, None))

    def _has_alternative(self, scope: Scope, tried: list[Upstream]) -> bool:
        with suppress(GuardError):
            self.upstreams.choose(scope.get(MODEL), None, tried, needs_plugin=_needs_plugin(scope))
            return True
        return False

    async def _exchange(
        self,
        upstream: Upstream,
        attempt: _Attempt,
        scope: Scope,
        path: str,
        body: ForwardedBody,
        send: Send,
        traced: Mapping[str, str],
    ) -> None:
        settings = self.settings
        first_byte_s, chunk_s = settings.first_byte_timeout_s, settings.chunk_timeout_s
        loop = asyncio.get_running_loop()
        deadline = loop.time() + settings.total_timeout_s
        url = _url(upstream, path, scope["query_string"])
        exchange: Exchange = scope[SCOPE_KEY]
        headers = [
            (name.decode("latin-1"), value.decode("latin-1"))
            for name, value in [*to_upstream(scope["headers"]), *upstream.credential]
            if not traced or name.decode("latin-1") not in PROPAGATED
        ]
        headers += [("x-request-id", exchange.request_id), *traced.items()]
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
            first_byte = min(deadline, loop.time() + first_byte_s)
            async with MovingTimeout(first_byte, min(first_byte_s, chunk_s)) as timer:

                def take_turn(waits_for_client: bool) -> None:
                    # neither a slow body nor a slow reader is the upstream's fault
                    attempt.waits_for_client = waits_for_client
                    until = deadline
                    if not waits_for_client:
                        until = loop.time() + (first_byte_s if response is None else chunk_s)
                    timer.until = min(deadline, until)

                body.on_turn = take_turn
                response = await self.session.request(
                    scope["method"], url, headers=headers, data=body.data(), allow_redirects=False
                )
                body.on_turn = ignore_turn
                _check_head(upstream, attempt, response)
                _refuse_redirects(upstream, response)
                take_turn(True)
                await send(
                    {
                        "type": "http.response.start",
                        "status": response.status,
                        "headers": to_client(response.raw_headers),
                    }
                )
                take_turn(False)
                last = b""
                async for chunk in response.content.iter_any():
                    if response.content.at_eof():
                        last = chunk
                        break
                    take_turn(True)
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
                    take_turn(False)
            # nor is the time that screens take to read a response that is all here
            await send({"type": "http.response.body", "body": last, "more_body": False})
            if not attempt.has_failed:
                upstream.breaker.succeeded()
        except asyncio.CancelledError:
            if disconnect.done() and not disconnect.cancelled():
                task.uncancel()
                raise ClientGone("The client hung up before its answer began.") from None
            raise
        except TimeoutError:
            if attempt.waits_for_client:
                if response is None:
                    raise SlowRequest("The request body came too slowly.") from None
                raise ClientGone("The client read its answer too slowly.") from None
            reason = "no answer began" if response is None else "the answer did not go on"
            raise UpstreamTimeout(f"The upstream {upstream.name} timed out: {reason}.") from None
        except aiohttp.ClientConnectorError as error:
            if error.os_error.errno in {errno.EMFILE, errno.ENFILE}:
                raise Overloaded("This proxy has no connection left.", retry_after=1.0) from None
            # the reason has the upstream's address, which is not for clients
            logger.warning("upstream %s cannot be reached: %s", upstream.name, error.os_error)
            raise UpstreamUnreachable(f"The upstream {upstream.name} cannot be reached.") from None
        except (aiohttp.ServerTimeoutError, aiohttp.ConnectionTimeoutError):
            raise UpstreamUnreachable(
                f"The upstream {upstream.name} cannot be reached: connecting timed out."
            ) from None
        except (aiohttp.ClientError, ConnectionError, ValueError) as error:
            if isinstance(error, ValueError):
                if response is not None:
                    raise  # a fault of this server, which screens the response
                raise BadPath("The path or a header of the request is not valid HTTP.") from None
            # aiohttp raises one and the same error for every response that is closed, which would
            # hold all frames that it has gone through, and so each such request for good
            error.__traceback__ = None
            if body.error is not None:
                raise body.error from None
            if disconnect.done():
                raise ClientGone("The client hung up before its answer was over.") from None
            raise UpstreamBroken(
                f"The upstream {upstream.name} failed: {type(error).__name__}."
            ) from None
        finally:
            body.on_turn = ignore_turn
            disconnect.remove_done_callback(hang_up)
            disconnect.cancel()
            if response is not None:
                # a connection with the rest of a response in it cannot be reused
                response.release() if response.content.at_eof() else response.close()


def _url(upstream: Upstream, path: str, query: bytes) -> URL:
    """Raises BadPath where no URL can have that path."""
    try:
        return URL(upstream.url(path, query.decode("latin-1")), encoded=True)
    except ValueError:
        raise BadPath("The path cannot be part of a URL.") from None


def _check_head(upstream: Upstream, attempt: _Attempt, response: aiohttp.ClientResponse) -> None:
    """Tell the breaker of the head of an answer.

    Raises UpstreamBroken for a status that HTTP does not have, and UpstreamRefused.
    """
    if not 200 <= response.status < 600:
        raise UpstreamBroken(
            f"The upstream {upstream.name} sent the status {response.status}, which HTTP has not."
        )
    if response.status in _FAILED:
        attempt.has_failed = True
        upstream.breaker.failed()
        return
    attempt.answers = upstream.breaker.answered()
    # such a response may show a part of the credential
    if upstream.credential and response.status in {401, 407}:
        raise UpstreamRefused(
            f"The upstream {upstream.name} does not take the credential it was configured with."
        )


def _refuse_redirects(upstream: Upstream, response: aiohttp.ClientResponse) -> None:
    if response.status in _REDIRECTS:
        logger.warning(
            "upstream %s redirects (%d) to %.200s: check its url",
            *(upstream.name, response.status, response.headers.get("location", "nowhere")),
        )
        raise UpstreamRedirects(
            f"The upstream {upstream.name} redirects this request, which is not followed: its "
            "operator has to check its url."
        )


def _needs_plugin(scope: Scope) -> bool:
    return bool(scope.get(DELEGATED))
