"""HTTP clients for the proxy compared: CPU time per request of httpx, aiohttp and pyreqwest.

    python -m benchmarks.http_clients [--seconds 3] [--json]

Each client sends the same POST to the stub upstream over 16 connections that are kept alive, and
reads the response piece by piece: once a whole one, once a stream of 100 events. pyreqwest (Rust)
is measured where it is installed. CPU time is that of this process.
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

from benchmarks.processes import free_port, running
from benchmarks.proxy import BODY

CONNECTIONS = 16
Send = Callable[[bytes], Awaitable[int]]
"""Sends a body; gives the number of bytes of the response, read piece by piece."""


@asynccontextmanager
async def _httpx(url: str) -> AsyncIterator[Send]:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=CONNECTIONS)
    async with httpx.AsyncClient(limits=limits, timeout=30) as client:

        async def send(body: bytes) -> int:
            async with client.stream("POST", url, content=body) as response:
                return sum([len(piece) async for piece in response.aiter_raw()])

        yield send


@asynccontextmanager
async def _aiohttp(url: str) -> AsyncIterator[Send]:
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as client:

        async def send(body: bytes) -> int:
            async with client.post(url, data=body) as response:
                return sum([len(piece) async for piece in response.content.iter_any()])

        yield send


@asynccontextmanager
async def _pyreqwest(url: str) -> AsyncIterator[Send]:
    from pyreqwest.client import ClientBuilder

    async with ClientBuilder().build() as client:

        async def send(body: bytes) -> int:
            size = 0
            async with client.post(url).body_bytes(body).build_streamed() as response:
                while piece := await response.body_reader.read(65536):
                    size += len(piece)
            return size

        yield send


def main() -> None:
    """Measure, and print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    port = free_port()
    stub = [sys.executable, "-m", "benchmarks.stub_upstream", "--port", str(port)]
    with running(stub, port):
        result = uvloop.run(_measure(f"http://127.0.0.1:{port}/v1/chat/completions", arguments))
    if arguments.json:
        print(json.dumps(result, indent=2))
        return
    table = Table("client", "CPU ms, whole answer", "CPU ms, 100 events")
    for name, row in result.items():
        table.add_row(name, f"{row['whole']:.3f}", f"{row['stream']:.3f}")
    Console().print(table)


async def _measure(url: str, arguments: argparse.Namespace) -> dict[str, Any]:
    clients: dict[str, Any] = {"httpx": _httpx, "aiohttp": _aiohttp}
    if importlib.util.find_spec("pyreqwest"):
        clients["pyreqwest"] = _pyreqwest
    result: dict[str, Any] = {}
    for name, client in clients.items():
        async with client(url) as send:
            row = {}
            for kind, body in (("whole", BODY), ("stream", BODY | {"stream": True})):
                raw = json.dumps(body).encode()
                await _saturate(send, raw, 0.5)
                begun = time.process_time()
                count = await _saturate(send, raw, arguments.seconds)
                row[kind] = 1000 * (time.process_time() - begun) / count
            result[name] = row
    return result


async def _saturate(send: Send, raw: bytes, seconds: float) -> int:
    """Requests that were answered within `seconds`."""
    count = 0
    until = time.perf_counter() + seconds

    async def worker() -> None:
        nonlocal count
        while time.perf_counter() < until:
            assert await send(raw) > 100
            count += 1

    await asyncio.gather(*(worker() for _ in range(CONNECTIONS)))
    return count


if __name__ == "__main__":
    main()
