"""Bounds on connections before anybody is known: heads of requests, their number and their time.

A client that has not sent a whole head yet is waited for as long as nobody else needs its place.
Where all places are taken by requests that run, probes are still answered: that a server is busy
is no reason to restart it.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Any, cast

from starlette.types import Receive, Scope, Send

from server.edge.http10 import ClosingProtocol
from server.errors import Overloaded, error_body, error_response
from server.lifecycle.joined_heads import JoinedHeads
from server.lifecycle.refusals import HeadTooLarge, HeadTooSlow, InvalidRequest
from server.wire.replies import encode

try:
    import resource
except ImportError:  # Windows has no such limit
    resource = None  # type: ignore[assignment]

_RESERVE = 16
_OWN_FILES = 64
"""Files that a process has open beside connections: libraries, logs, models."""
_MOST_CONNECTIONS = 10_000
PROBES = frozenset({"/health", "/ready", "/metrics"})
_CHUNK_FRAME = 32
"""Bytes around a chunk of a body that are not counted."""


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """`head_bytes` and `headers` of one request, sent within `head_s`; `connections` at the same
    time, and `reserve` more for probes. Files beyond number `files` are left to upstreams and logs.
    A client that reads nothing for `read_s` is cut off."""

    head_bytes: int = 2**16
    headers: int = 128
    head_s: float = 15.0
    read_s: float = 120.0
    connections: int = _MOST_CONNECTIONS
    reserve: int = _RESERVE
    files: int = 2**31

    @classmethod
    def of_process(cls, *, has_upstreams: bool) -> ConnectionLimits:
        """Limits by the number of files that the process may open, raised as far as it goes.

        With upstreams each request takes two files.
        """
        if resource is None:
            return cls(connections=500)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != hard and hard != resource.RLIM_INFINITY:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
        free = max(soft - _RESERVE - _OWN_FILES, 8)
        most = free // 2 if has_upstreams else free
        return cls(connections=min(most, _MOST_CONNECTIONS), files=soft - _RESERVE)


class Connections:
    """All connections of a server: those that run requests, and those that may be closed."""

    def __init__(self, limits: ConnectionLimits) -> None:
        self.limits = limits
        self._open: set[BoundedProtocol] = set()
        # in the order in which they began to wait
        self._idle: dict[BoundedProtocol, None] = {}

    def add(self, connection: BoundedProtocol, file: int) -> bool:
        """Take a connection in; return whether it has a place. One without may ask for probes.

        The one that has waited longest for the head of a request makes place.
        """
        limits = self.limits
        self._open.add(connection)
        has_place = len(self._open) <= limits.connections and file < limits.files
        if not has_place and self._idle:
            longest = next(iter(self._idle))
            self.remove(longest)
            longest.close()
            has_place = len(self._open) <= limits.connections
        self._idle[connection] = None
        return has_place

    @property
    def are_too_many(self) -> bool:
        """Whether even the reserve is taken."""
        return len(self._open) > self.limits.connections + self.limits.reserve

    def remove(self, connection: BoundedProtocol) -> None:
        """The connection is closed."""
        self._open.discard(connection)
        self._idle.pop(connection, None)

    def wait(self, connection: BoundedProtocol) -> None:
        """The connection waits for a request."""
        if connection in self._open:
            self._idle[connection] = None

    def run(self, connection: BoundedProtocol) -> None:
        """The connection runs a request."""
        self._idle.pop(connection, None)


class BoundedProtocol(ClosingProtocol):
    """One connection."""

    def __init__(self, *args: Any, all_connections: Connections, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._all, self._limits = all_connections, all_connections.limits
        self._timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._unread = 0
        """Bytes that have come and belong neither to a whole head nor to a body."""
        self._is_refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(cast(asyncio.Transport, JoinedHeads(transport, self.loop)))
        wire = transport.get_extra_info("socket")
        if not self._all.add(self, wire.fileno() if wire is not None else 0):
            self.app = _ProbesAlone(self.app)
        if self._all.are_too_many:
            self._all.remove(self)
            transport.abort()
            return
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._all.remove(self)
        self._stop_timer()
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._unread += len(data)
        super().data_received(data)
        if self._unread > self._limits.head_bytes:
            self._refuse_head()
        elif self._timer is None and self._is_idle and not self.transport.is_closing():
            self._expect_head()

    def on_headers_complete(self) -> None:
        unread, self._unread = self._unread, 0
        limits = self._limits
        if len(self.headers) > limits.headers or unread > limits.head_bytes:
            self._require_small_head()
        self._stop_timer()
        self._all.run(self)
        super().on_headers_complete()

    def on_chunk_header(self) -> None:
        """The parser has read the head of a chunk."""
        self._unread -= _CHUNK_FRAME

    def on_body(self, body: bytes) -> None:
        self._unread -= len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._unread = 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing() and self.transport.get_write_buffer_size():
            self.loop.call_later(self._limits.read_s, self.transport.abort)
        if self._is_idle:
            self._all.wait(self)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._write_timer = self.loop.call_later(self._limits.read_s, self.transport.abort)

    def resume_writing(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None
        super().resume_writing()

    def timeout_keep_alive_handler(self) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection, whether or not the client reads what is left for it."""
        if not self.transport.is_closing():
            self.transport.close()
            self.loop.call_later(self._limits.head_s, self.transport.abort)

    def send_400_response(self, msg: str) -> None:
        if self._is_refused:
            self._send_refusal(HeadTooLarge(self._limits.head_bytes, self._limits.headers))
        else:
            self._send_refusal(InvalidRequest())

    @property
    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _require_small_head(self) -> None:
        """What has come may be a head and a part of a body."""
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if len(self.headers) > self._limits.headers or size > self._limits.head_bytes:
            self._is_refused = True
            raise ValueError("the head is too large")  # the parser stops, as at a fault of HTTP

    def _expect_head(self) -> None:
        self._timer = self.loop.call_later(self._limits.head_s, self._give_up)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        if self._unread > 0 and not self.transport.is_closing():
            self._send_refusal(HeadTooSlow())
        else:
            self.close()

    def _refuse_head(self) -> None:
        if not self.transport.is_closing():
            self._is_refused = True
            self.send_400_response("")

    def _send_refusal(self, error: InvalidRequest | HeadTooLarge | HeadTooSlow) -> None:
        if not self._is_idle:
            # an answer has begun: nothing can be said in its middle
            self.close()
            return
        body = encode(error_body(error))
        status = HTTPStatus(error.status)
        head = (
            f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.close()


class _ProbesAlone:
    """The app of a connection without a place."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] in PROBES:
            await self._app(scope, receive, send)
            return
        busy = Overloaded("All connections of this server are in use; try again.", retry_after=1.0)
        response = error_response(busy)
        response.headers["Connection"] = "close"
        await response(scope, receive, send)


def bounded_http(limits: ConnectionLimits) -> Any:
    """The `http` of a uvicorn.Config: the protocol of a server with these limits."""
    return partial(BoundedProtocol, all_connections=Connections(limits))
