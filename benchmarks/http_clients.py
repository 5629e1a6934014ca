"""Which HTTP client a proxy should have: processor time a request, and how fast chunks come.

    python -m benchmarks.http_clients [--seconds 3] [--json]

Each sends the same POST to the stub upstream over connections that are kept alive, 16 at once, and
reads the answer as it comes, whole and as a stream of 100 events. httpx, aiohttp and, where it is
installed, pyreqwest (Rust). Processor time is this process's own.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import httpx
import uvloop
from rich.console import Console
from rich.table import Table

from benchmarks.proxy import BODY, free_port, running

AT_ONCE = 16
Ask = Callable[[bytes], Awaitable[int]]
"""Sends a body; the bytes of the answer, read piece by piece."""


@asynccontextmanager
async def _httpx(url: str) -> AsyncIterator[Ask]:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=AT_ONCE)
    async with httpx.AsyncClient(limits=limits, timeout=30) as client:

        async def ask(body: bytes) -> int:
            async with client.stream("POST", url, content=body) as answer:
                return sum([len(piece) async for piece in answer.aiter_raw()])

        yield ask


@asynccontextmanager
async def _aiohttp(url: str) -> AsyncIterator[Ask]:
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as client:

        async def ask(body: bytes) -> int:
            async with client.post(url, data=body) as answer:
                return sum([len(piece) async for piece in answer.content.iter_any()])

        yield ask


@asynccontextmanager
async def _pyreqwest(url: str) -> AsyncIterator[Ask]:
    from pyreqwest.client import ClientBuilder  # type: ignore[import-not-found]

    async with ClientBuilder().build() as client:

        async def ask(body: bytes) -> int:
            size = 0
            async with client.post(url).body_bytes(body).build_streamed() as answer:
                while piece := await answer.body_reader.read(65536):
                    size += len(piece)
            return size

        yield ask


def main() -> None:
    """Measure, and print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    port = free_port()
    stub = [sys.executable, "-m", "benchmarks.stub_upstream", "--port", str(port)]
    with running(stub, port):
        found = uvloop.run(_measure(f"http://127.0.0.1:{port}/v1/chat/completions", arguments))
    if arguments.json:
        print(json.dumps(found, indent=2))
        return
    table = Table("client", "CPU ms, whole answer", "CPU ms, 100 events")
    for name, row in found.items():
        table.add_row(name, f"{row['whole']:.3f}", f"{row['stream']:.3f}")
    Console().print(table)


async def _measure(url: str, arguments: argparse.Namespace) -> dict[str, Any]:
    clients: dict[str, Any] = {"httpx": _httpx, "aiohttp": _aiohttp}
    if importlib.util.find_spec("pyreqwest"):
        clients["pyreqwest"] = _pyreqwest
    found: dict[str, Any] = {}
    for name, client in clients.items():
        async with client(url) as ask:
            row = {}
            for kind, body in (("whole", BODY), ("stream", BODY | {"stream": True})):
                raw = json.dumps(body).encode()
                await _ask(ask, raw, 0.5)
                begun = time.process_time()
                count = await _ask(ask, raw, arguments.seconds)
                row[kind] = 1000 * (time.process_time() - begun) / count
            found[name] = row
    return found


async def _ask(ask: Ask, raw: bytes, seconds: float) -> int:
    count = 0
    until = time.perf_counter() + seconds

    async def one() -> None:
        nonlocal count
        while time.perf_counter() < until:
            assert await ask(raw) > 100
            count += 1

    await asyncio.gather(*(one() for _ in range(AT_ONCE)))
    return count


if __name__ == "__main__":
    main()
