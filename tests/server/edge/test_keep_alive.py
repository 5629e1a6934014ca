"""Comments in silent streams: between events, and nowhere else."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from starlette.types import Message

from server.edge.keep_alive import COMMENT, KeepAliveSend

EVERY_S = 0.04


def start(*headers: tuple[bytes, bytes]) -> Message:
    return {"type": "http.response.start", "status": 200, "headers": list(headers)}


def chunk(body: bytes, *, more: bool = True) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": more}


STREAM = (b"content-type", b"text/event-stream; charset=utf-8")


def sent(messages: Sequence[Message | float]) -> list[Message]:
    """What leaves of these messages; a number is a silence in units of EVERY_S."""
    out: list[Message] = []

    async def send(message: Message) -> None:
        out.append(message)

    async def run() -> None:
        keep_alive = KeepAliveSend(send, EVERY_S)
        for message in messages:
            if isinstance(message, float):
                await asyncio.sleep(message * EVERY_S)
            else:
                await keep_alive(message)
        keep_alive.close()
        await asyncio.sleep(2 * EVERY_S)

    asyncio.run(run())
    return out


def comments(messages: Sequence[Message | float]) -> int:
    return sum(message.get("body") == COMMENT for message in sent(messages))


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n", b"\r\r"])
def test_a_silent_stream_gets_comments_between_its_events(end: bytes) -> None:
    out = sent([start(STREAM), 1.5, chunk(b"data: 1" + end), 2.6, chunk(b"data: 2" + end)])
    bodies = [message["body"] for message in out[1:]]
    assert bodies[0] == COMMENT and bodies[1] == b"data: 1" + end
    assert bodies[2:-1] and set(bodies[2:-1]) == {COMMENT} and bodies[-1] == b"data: 2" + end


def test_a_stream_that_flows_gets_none() -> None:
    flowing = [chunk(b"data: 1\n\n"), 0.4] * 8
    assert comments([start(STREAM), *flowing]) == 0


def test_the_middle_of_an_event_stays_whole() -> None:
    assert comments([start(STREAM), chunk(b"data: 1\n"), 2.5, chunk(b"\n", more=False)]) == 0
    # its end may come in pieces
    assert comments([start(STREAM), chunk(b"data: 1\n"), chunk(b"\n"), 1.5]) == 1


@pytest.mark.parametrize(
    "headers",
    [
        [(b"content-type", b"application/json")],
        [STREAM, (b"content-length", b"100")],
        [STREAM, (b"content-encoding", b"gzip")],
        [],
    ],
)
def test_nothing_else_is_added_to(headers: list[tuple[bytes, bytes]]) -> None:
    assert comments([start(*headers), chunk(b""), 2.5]) == 0


def test_nothing_follows_the_end() -> None:
    out = sent([start(STREAM), chunk(b"data: 1\n\n", more=False), 2.5])
    assert out[-1] == chunk(b"data: 1\n\n", more=False)


def test_nothing_comes_before_the_head() -> None:
    out = sent([2.5, start(STREAM), chunk(b"", more=False)])
    assert [message["type"] for message in out] == ["http.response.start", "http.response.body"]
