from __future__ import annotations

import asyncio
from typing import Any

import pytest

from server.lifecycle.joined_heads import JoinedHeads

pytestmark = pytest.mark.anyio
HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n"


class Wire:
    """What is written to a connection, write by write."""

    def __init__(self) -> None:
        self.written: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def close(self) -> None:
        self.written.append(b"closed")

    def get_write_buffer_size(self) -> int:
        return 3

    def is_closing(self) -> bool:
        return self.written[-1:] == [b"closed"]


async def joined() -> tuple[Wire, JoinedHeads]:
    wire: Any = Wire()
    return wire, JoinedHeads(wire, asyncio.get_running_loop())


async def test_a_head_goes_with_the_body_behind_it() -> None:
    wire, transport = await joined()
    transport.write(HEAD)
    assert wire.written == [] and transport.get_write_buffer_size() == 3 + len(HEAD)
    transport.write(b"body")
    assert wire.written == [HEAD + b"body"] and transport.get_write_buffer_size() == 3
    transport.write(b"more")
    await asyncio.sleep(0)
    assert wire.written == [HEAD + b"body", b"more"]


async def test_a_head_without_a_body_waits_for_nobody() -> None:
    wire, transport = await joined()
    transport.write(HEAD)
    await asyncio.sleep(0)
    assert wire.written == [HEAD]
    transport.write(b"body")
    assert wire.written == [HEAD, b"body"]


async def test_nothing_is_lost_at_the_end() -> None:
    wire, transport = await joined()
    transport.write(HEAD)
    transport.close()
    assert wire.written == [HEAD, b"closed"] and transport.is_closing()
    await asyncio.sleep(0)
    assert wire.written == [HEAD, b"closed"]


def test_a_connection_that_is_lost_meanwhile_takes_no_head() -> None:
    uvloop = pytest.importorskip("uvloop")
    problems: list[dict[str, Any]] = []

    async def lose_one() -> None:
        loop, lost = asyncio.get_running_loop(), asyncio.Event()
        loop.set_exception_handler(lambda _, context: problems.append(context))

        class Lost(asyncio.Protocol):
            def connection_made(self, transport: Any) -> None:
                self.transport = transport

            def data_received(self, data: bytes) -> None:
                self.transport.abort()
                JoinedHeads(self.transport, loop).write(HEAD)

            def connection_lost(self, exc: Exception | None) -> None:
                loop.call_later(0.01, lost.set)

        async with await loop.create_server(Lost, "127.0.0.1", 0) as server:
            _, client = await asyncio.open_connection(*server.sockets[0].getsockname())
            client.write(b"GET")
            await asyncio.wait_for(lost.wait(), 20)
            client.close()

    uvloop.run(lose_one())
    assert problems == []
