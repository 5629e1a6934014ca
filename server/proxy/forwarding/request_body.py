"""The body of a request on its way to the upstream: whole where it came in one chunk."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from starlette.types import Message, Receive, Scope

from guard.errors import GuardError
from server.errors import BodyTooLarge, ClientGone, SlowRequest
from server.proxy.forwarding.moving_timeout import MovingTimeout
from server.wire.body import SCOPE_KEY as BODY


class ForwardedBody:
    """The body of a request: whole where it came in one chunk, else streamed.

    `error` is what the client did wrong while its body was sent on. `on_turn` is called with True
    when the client is waited for, and with False when it is the upstream's turn: it gets a chunk,
    or has the whole body.
    """

    def __init__(
        self,
        first: bytes,
        more: bool,
        length: int | None,
        receive: Receive,
        limit: int,
        patience_s: float,
    ) -> None:
        self.is_streamed = more
        self.length = length if more else len(first)
        self.error: GuardError | None = None
        self.on_turn: Callable[[bool], None] = ignore_turn
        self._first, self._receive, self._limit = first, receive, limit
        self._patience_s = patience_s
        self._sent = asyncio.Event()
        if not more:
            self._sent.set()

    @classmethod
    async def begin(
        cls, scope: Scope, receive: Receive, limit: int, patience_s: float
    ) -> ForwardedBody:
        """Receive the first chunk of a body of at most `limit` bytes, of which the next chunk comes
        within `patience_s`. Raises BodyTooLarge, SlowRequest and ClientGone."""
        announced = dict(scope["headers"]).get(b"content-length", b"")
        length = int(announced[:20]) if announced.isdigit() else None
        if length is not None and length > limit:
            raise _too_large(limit)
        # one that an outer layer has read is there
        message = await (receive() if BODY in scope else _next(receive, patience_s))
        _require_body(message)
        first = message.get("body", b"")
        if len(first) > limit:
            raise _too_large(limit)
        more = message.get("more_body", False)
        return cls(first, more, length, receive, limit, patience_s)

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
            self.on_turn(True)
            try:
                message = await _next(self._receive, self._patience_s)
                _require_body(message)
                chunk = message.get("body", b"")
                size += len(chunk)
                if size > self._limit:
                    raise _too_large(self._limit)
            except GuardError as error:
                self.error = error
                raise ConnectionResetError from error
            self.on_turn(False)
            if chunk:
                yield chunk
            if not message.get("more_body", False):
                break
        self._sent.set()
        self.on_turn(False)


def ignore_turn(waits_for_client: bool) -> None:
    pass


async def _next(receive: Receive, patience_s: float) -> Message:
    """The next message. Raises SlowRequest."""
    try:
        until = asyncio.get_running_loop().time() + patience_s
        async with MovingTimeout(until, patience_s):
            message = await receive()
    except TimeoutError:
        raise SlowRequest("The request body came too slowly.") from None
    return message


def _require_body(message: Message) -> None:
    if message["type"] == "http.disconnect":
        raise ClientGone("The client hung up while sending its request.")


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"The request body is longer than {limit} bytes; send less.")
