"""Comments in streams of events that are silent, so that nobody between takes them for dead."""

from __future__ import annotations

import asyncio

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

COMMENT = b": keep-alive\n\n"
_ENDS = (b"\n\n", b"\r\r", b"\n\r\n", b"\r\n\n")


class KeepAliveSend:
    """A `send` that adds a comment to a stream of events after each silence of `every_s` seconds.

    Only between two events, and only once the response has begun: its status is the app's. Call
    `close` once the app has returned.
    """

    def __init__(self, send: Send, every_s: float) -> None:
        self._send, self._every_s = send, every_s
        self._lock = asyncio.Lock()
        self._tail = b""
        self._last = 0.0
        self._is_open = False
        self._timer: asyncio.TimerHandle | None = None
        self._comment: asyncio.Task[None] | None = None

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            await self._send(message)
            if _is_events(Headers(raw=message["headers"])):
                self._is_open = True
                self._last = asyncio.get_running_loop().time()
                self._wait(self._every_s)
            return
        if not self._is_open:
            await self._send(message)
            return
        async with self._lock:
            self._is_open = message.get("more_body", False)
            self._tail = (self._tail + message.get("body", b"")[-4:])[-4:]
            await self._send(message)
            self._last = asyncio.get_running_loop().time()

    def close(self) -> None:
        """No more messages come."""
        self._is_open = False
        if self._timer is not None:
            self._timer.cancel()
        if self._comment is not None:
            self._comment.cancel()

    def _wait(self, seconds: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(seconds, self._check)

    def _check(self) -> None:
        if not self._is_open:
            return
        silent_s = asyncio.get_running_loop().time() - self._last
        if silent_s < self._every_s:
            self._wait(self._every_s - silent_s)
        else:
            self._comment = asyncio.ensure_future(self._send_comment())

    async def _send_comment(self) -> None:
        async with self._lock:
            if not self._is_open:
                return
            if not self._tail or self._tail.endswith(_ENDS):
                await self._send({"type": "http.response.body", "body": COMMENT, "more_body": True})
            self._last = asyncio.get_running_loop().time()
        self._wait(self._every_s)


def kept_alive(app: ASGIApp, every_s: float) -> ASGIApp:
    """`app` with a KeepAliveSend for each request."""

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        keep_alive = KeepAliveSend(send, every_s)
        try:
            await app(scope, receive, keep_alive)
        finally:
            keep_alive.close()

    return call


def _is_events(headers: Headers) -> bool:
    """Whether a response is a stream of events that can be added to."""
    return (
        headers.get("content-type", "").startswith("text/event-stream")
        and "content-length" not in headers
        and headers.get("content-encoding", "identity") == "identity"
    )
