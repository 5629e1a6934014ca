"""Writes to a connection that go out together: each costs a call of the system, and a packet."""

from __future__ import annotations

import asyncio
from typing import Any, Final

_MOST: Final = 2**16
"""Bytes that wait for the next turn of the event loop."""


class JoinedWrites:
    """A transport that writes what comes in one turn of the event loop at once: the head of an
    answer goes out with its body. The calls that it does not know are those of `transport`."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._waiting: list[bytes] = []
        self._size = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Write `data` before the event loop goes on to its next turn."""
        if not self._waiting:
            self._loop.call_soon(self._flush)
        self._waiting.append(data)
        self._size += len(data)
        if self._size > _MOST:
            self._flush()

    def close(self) -> None:
        """Close the connection, once all has been written."""
        self._flush()
        self._transport.close()

    def get_write_buffer_size(self) -> int:
        """Bytes that wait."""
        return self._size + self._transport.get_write_buffer_size()

    def _flush(self) -> None:
        data, self._size = b"".join(self._waiting), 0
        self._waiting.clear()
        if data and not self._transport.is_closing():
            self._transport.write(data)
