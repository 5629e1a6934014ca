"""A stub upstream that costs as little as possible: fixed responses, close to the socket.

    python -m benchmarks.stub_upstream --port 9001

Every POST gets one chat completion or, with `"stream": true` in the body, a stream of `--chunks`
events, `--gap-ms` apart. Other methods get `{}`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from typing import cast

import uvloop

WORDS = "The quick brown fox jumps over the lazy dog and goes on its way. "


def _whole(text: str) -> bytes:
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text},
        "finish_reason": "stop",
    }
    body = json.dumps(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1,
            "model": "stub",
            "choices": [choice],
            "usage": {"prompt_tokens": 9, "completion_tokens": 9, "total_tokens": 18},
        }
    ).encode()
    head = (
        f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def _event(delta: dict[str, str], end: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": end}
    event = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "stub"}
    return _chunk(b"data: " + json.dumps({**event, "choices": [choice]}).encode() + b"\n\n")


def _chunk(content: bytes) -> bytes:
    return f"{len(content):x}\r\n".encode() + content + b"\r\n"


_STREAM = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
)
_NOTHING = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"


class Stub(asyncio.Protocol):
    """One connection, with one request after the other."""

    def __init__(self, chunks: int, gap_s: float, response: bytes) -> None:
        self.chunks, self.gap_s, self.response = chunks, gap_s, response
        self.received = b""
        self.streaming: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.streaming is not None:
            self.streaming.cancel()

    def data_received(self, data: bytes) -> None:
        self.received += data
        while (end := self.received.find(b"\r\n\r\n")) >= 0:
            head = self.received[:end].lower()
            length = 0
            if (at := head.find(b"content-length:")) >= 0:
                length = int(head[at + 15 :].split(b"\r\n", 1)[0])
            if len(self.received) < end + 4 + length:
                return
            body, self.received = (
                self.received[end + 4 : end + 4 + length],
                self.received[end + 4 + length :],
            )
            if not head.startswith(b"post"):
                self.transport.write(_NOTHING)
            elif b'"stream": true' in body or b'"stream":true' in body:
                self.streaming = asyncio.get_running_loop().create_task(self._stream())
            else:
                self.transport.write(self.response)

    async def _stream(self) -> None:
        self.transport.write(_STREAM + _event({"role": "assistant", "content": ""}))
        words = WORDS.split(" ")
        for number in range(self.chunks):
            if self.gap_s:
                await asyncio.sleep(self.gap_s)
            self.transport.write(_event({"content": words[number % len(words)] + " "}))
        self.transport.write(_event({}, "stop") + _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")


async def serve(port: int, chunks: int, gap_s: float) -> None:
    """Serve until cancelled."""
    response = _whole(WORDS * 4)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: Stub(chunks, gap_s, response), "127.0.0.1", port, backlog=2048
    )
    await server.serve_forever()


def main() -> None:
    """Serve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--chunks", type=int, default=100)
    parser.add_argument("--gap-ms", type=float, default=0.0)
    arguments = parser.parse_args()
    uvloop.run(serve(arguments.port, arguments.chunks, arguments.gap_ms / 1000))


if __name__ == "__main__":
    main()
