"""Many streams open at once through the proxy: memory per stream, leaks, and the delay of text.

    python -m benchmarks.proxy_streams [--streams 1000] [--minutes 5] [--json]

The upstream sends a word per second on every stream, and the shipped patterns screen it. Memory is
the resident set of the proxy's process, read every ten seconds while all streams are open; a leak
shows as growth in the second half. The delay of text is measured on streams of its own: how many
characters later than from the upstream itself the first text arrives.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.processes import free_port, resident_kib, running
from benchmarks.proxy import SCREENS
from benchmarks.wire import Connection, request

HOLD_BACK = 200
BODY: dict[str, object] = {
    "model": "stub",
    "stream": True,
    "messages": [{"role": "user", "content": "hello"}],
}


def main() -> None:
    """Measure, and print lines, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    seconds = 60 * arguments.minutes
    with ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.toml"
        config.write_text(f"{SCREENS}[policies.p.screen]\nhold_back_chars = {HOLD_BACK}\n")
        result = _measure(stack, config, arguments.streams, seconds)
    if arguments.json:
        print(json.dumps(result, indent=2))
    else:
        for name, value in result.items():
            print(f"{name}: {value}")


def _measure(stack: ExitStack, config: Path, streams: int, seconds: float) -> dict[str, Any]:
    slow, fast, port, second = (free_port() for _ in range(4))
    stub = [sys.executable, "-m", "benchmarks.stub_upstream", "--port"]
    chunks = int(seconds) + 30
    options = ["--chunks", str(chunks), "--gap-ms", "1000"]
    stack.enter_context(running([*stub, str(slow), *options], slow))
    stack.enter_context(running([*stub, str(fast), "--chunks", "200", "--gap-ms", "5"], fast))
    proxy = [sys.executable, "-m", "guard", "proxy", "--config", str(config), "--port"]
    process = stack.enter_context(
        running([*proxy, str(port), "--upstream", f"http://127.0.0.1:{slow}"], port)
    )
    stack.enter_context(
        running([*proxy, str(second), "--upstream", f"http://127.0.0.1:{fast}"], second)
    )
    return uvloop.run(_streams(port, process, fast, second, streams, seconds))


async def _streams(
    port: int, process: int, fast: int, second: int, streams: int, seconds: float
) -> dict[str, Any]:
    for _ in range(20):  # the first requests pay for imports and caches
        await _characters_before_text(fast)
        await _characters_before_text(second)
    empty = resident_kib(process)
    raw = request(port, BODY)
    opened = []
    for _ in range(streams):
        connection = await Connection.open(port)
        connection.writer.write(raw)
        opened.append(connection)
        await asyncio.sleep(0.002)
    draining = [asyncio.create_task(_drain(connection)) for connection in opened]
    await asyncio.sleep(10)
    readings = []
    begun = time.monotonic()
    while time.monotonic() - begun < seconds - 20:
        readings.append(resident_kib(process))
        await asyncio.sleep(10)
    for task in draining:
        task.cancel()
    for connection in opened:
        connection.close()
    await asyncio.sleep(5)
    half = len(readings) // 2
    direct = [await _characters_before_text(fast) for _ in range(20)]
    through = [await _characters_before_text(second) for _ in range(20)]
    return {
        "streams": streams,
        "seconds": seconds,
        "KiB a stream": round((statistics.median(readings) - empty) / streams, 1),
        "growth in the second half, KiB a stream": round(
            (statistics.median(readings[half:]) - statistics.median(readings[:half])) / streams, 2
        ),
        "left when all are closed, KiB a stream": round(
            (resident_kib(process) - empty) / streams, 1
        ),
        "resident MiB, every ten seconds": [round(kib / 1024, 1) for kib in readings],
        "characters that come before the first leaves": statistics.median(through)
        - statistics.median(direct),
        "held back at most": HOLD_BACK,
    }


async def _drain(connection: Connection) -> None:
    while await connection.reader.read(65536):
        pass


async def _characters_before_text(port: int) -> float:
    """Characters that the upstream has sent when the first text arrives, estimated from the time:
    it sends a word of about five characters every 5 ms."""
    connection = await Connection.open(port)
    begun = time.perf_counter()
    connection.writer.write(request(port, BODY))
    received = b""
    while b'"content": "The' not in received and b'"content":"The' not in received:
        received += await connection.reader.read(65536)
    waited = time.perf_counter() - begun
    connection.close()
    return waited / 0.005 * 5


if __name__ == "__main__":
    main()
