"""The head of a response and the first part of its body in one write.

uvicorn writes them apart, and uvloop sends each write at once: two system calls and two packets a
response, the first of which wakes a client that cannot do anything with it yet.
"""

from __future__ import annotations

import asyncio
from typing import Any


class JoinedHeads:
    """A transport that keeps a head until the next write, or the end of the loop's turn."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop, self._head = transport, loop, b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Send `data` behind the head that is kept; or keep it, where it is one."""
        if self._head:
            data, self._head = self._head + data, b""
        elif data.startswith(b"HTTP/"):
            self._head = data
            self._loop.call_soon(self._send_head)
            return
        self._transport.write(data)

    def close(self) -> None:
        """Close the connection once everything is sent."""
        self._send_head()
        self._transport.close()

    def get_write_buffer_size(self) -> int:
        """Bytes that are not sent yet."""
        return len(self._head) + self._transport.get_write_buffer_size()

    def _send_head(self) -> None:
        if head := self._head:
            self._head = b""
            # one that was lost meanwhile takes nothing: uvloop raises where asyncio says nothing
            if not self._transport.is_closing():
                self._transport.write(head)
