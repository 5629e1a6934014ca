"""A load generator close to the socket, so that its cost does not hide that of the server."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass


def request(
    port: int,
    body: dict[str, object],
    path: str = "/v1/chat/completions",
    *,
    key: str = "sk-bench",
) -> bytes:
    """The bytes of one POST request."""
    content = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\ncontent-type: application/json\r\n"
        f"authorization: Bearer {key}\r\ncontent-length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


@dataclass(slots=True)
class Connection:
    """A connection that is kept alive."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @classmethod
    async def open(cls, port: int) -> Connection:
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def ask(self, raw: bytes) -> int:
        """Send a request and read its whole response; the status."""
        status, _ = await self.respond(raw)
        return status

    async def respond(self, raw: bytes) -> tuple[int, bytes]:
        """Send a request; status and body of the response."""
        self.writer.write(raw)
        head = await self.reader.readuntil(b"\r\n\r\n")
        lowered = head.lower()
        if (at := lowered.find(b"content-length:")) >= 0:
            body = await self.reader.readexactly(int(lowered[at + 15 :].split(b"\r\n", 1)[0]))
        else:
            chunks = []
            while size := int(await self.reader.readuntil(b"\r\n"), 16):
                chunks.append((await self.reader.readexactly(size + 2))[:-2])
            await self.reader.readexactly(2)
            body = b"".join(chunks)
        return int(head[9:12]), body

    async def chunks(self, raw: bytes) -> AsyncIterator[bytes]:
        """Send a request; the chunks of its response as they come. Raises SystemExit where it is
        no success, or has no chunks."""
        self.writer.write(raw)
        head = await self.reader.readuntil(b"\r\n\r\n")
        if int(head[9:12]) != 200 or b"chunked" not in head.lower():
            raise SystemExit(f"no stream came, but {head.decode('latin-1')}")
        while size := int(await self.reader.readuntil(b"\r\n"), 16):
            yield (await self.reader.readexactly(size + 2))[:-2]
        await self.reader.readexactly(2)

    def close(self) -> None:
        self.writer.close()


async def paced(port: int, raw: bytes, per_second: float, seconds: float) -> list[float]:
    """Latencies in ms of requests at fixed times, independent of the responses before them.

    The latency counts from the time at which a request was due, even if the generator was late.
    """
    idle: list[Connection] = []
    latencies: list[float] = []

    async def send(due: float) -> None:
        connection = idle.pop() if idle else await Connection.open(port)
        status = await connection.ask(raw)
        latencies.append(1000 * (time.perf_counter() - due))
        assert status == 200, status
        idle.append(connection)

    begun = time.perf_counter()
    tasks = []
    for number in range(int(per_second * seconds)):
        due = begun + number / per_second
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        tasks.append(asyncio.create_task(send(due)))
    await asyncio.gather(*tasks)
    for connection in idle:
        connection.close()
    return latencies


async def saturating(port: int, raw: bytes, connections: int, seconds: float) -> float:
    """Requests per second of `connections` that each send the next request at once."""
    count = 0
    until = time.perf_counter() + seconds

    async def worker() -> None:
        nonlocal count
        connection = await Connection.open(port)
        while time.perf_counter() < until:
            assert await connection.ask(raw) == 200
            count += 1
        connection.close()

    await asyncio.gather(*(worker() for _ in range(connections)))
    return count / seconds


async def answered(port: int, raws: Iterable[bytes], connections: int) -> int:
    """Send requests over `connections` that each send the next one at once; how many there were.

    Raises SystemExit where one is refused.
    """
    count = 0
    waiting = iter(raws)

    async def worker() -> None:
        nonlocal count
        connection = await Connection.open(port)
        for raw in waiting:
            status, content = await connection.respond(raw)
            if status != 200:
                raise SystemExit(f"a request was answered with {status}: {content[:500]!r}")
            count += 1
        connection.close()

    await asyncio.gather(*(worker() for _ in range(connections)))
    return count
