"""What limits cost that servers count together: `python -m benchmarks.shared_limits`.

Proxies side by side before one stub upstream, each on one core, for a key with a limit: counted
in the process, in Redis, in PostgreSQL (`--postgresql URL`), and by two proxies in one Redis, both
under load at the same time. Each round measures all in a new random order; the report has medians.
CPU time per request is that of the proxies while they were saturated: two of them scale as it stays
the same, where each has a core.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated

import typer
import uvloop
from rich.console import Console
from rich.table import Table

from benchmarks.processes import cpu_seconds, free_port, running
from benchmarks.proxy import BODY, CONNECTIONS, PER_SECOND
from benchmarks.wire import paced, request, saturating
from guard.tenants.secret import hash_key

KEY = f"""
[[keys]]
hash = "{hash_key("sk-bench")}"
tenant = "bench"
requests_per_minute = 1000000
"""
Servers = list[tuple[int, int]]
"""The port and the process of each proxy."""


def main(
    postgresql: Annotated[str | None, typer.Option(help="URL of a database to count in.")] = None,
    rounds: Annotated[int, typer.Option(min=1)] = 5,
    seconds: Annotated[float, typer.Option(min=0.5)] = 3.0,
) -> None:
    """Measure, and print a table."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    with _targets(postgresql) as targets:
        rows = uvloop.run(_measure(targets, rounds, seconds))
    table = Table("limits", "p50 ms", "beside in process", "CPU ms a request", "requests/s")
    for name, (p50, added, cpu_ms, rate) in rows.items():
        table.add_row(name, f"{p50:.2f}", f"{added:+.3f}", f"{cpu_ms:.3f}", f"{rate:.0f}")
    Console().print(table)


@contextmanager
def _targets(postgresql: str | None) -> Iterator[dict[str, Servers]]:
    server = shutil.which("redis-server")
    if server is None:
        raise SystemExit("this needs Redis (Debian: apt-get install redis-server)")
    with ExitStack() as stack:
        start = stack.enter_context
        folder = Path(start(tempfile.TemporaryDirectory()))
        port, stub = free_port(), free_port()
        start(running([server, "--port", str(port), "--save", ""], port, folder=folder))
        start(
            running([sys.executable, "-m", "benchmarks.stub_upstream", "--port", str(stub)], stub)
        )
        redis = f'store = "redis://127.0.0.1:{port}/0"'
        stores = {"in process": [""], "Redis": [f'{redis}\nname = "one"']}
        if postgresql is not None:
            stores["PostgreSQL"] = [f'store = "{postgresql}"']
        stores["Redis, two proxies"] = [f'{redis}\nname = "two"'] * 2
        cores = sorted(os.sched_getaffinity(1), reverse=True)
        targets: dict[str, Servers] = {}
        for name, sections in stores.items():
            targets[name] = []
            for number, section in enumerate(sections):
                path = folder / f"{name.replace(' ', '-')}-{number}.toml"
                path.write_text((f"[replicas]\n{section}\n" if section else "") + KEY)
                listen = free_port()
                command = [sys.executable, "-m", "guard", "proxy", "--config", str(path)]
                command += ["--upstream", f"http://127.0.0.1:{stub}", "--port", str(listen)]
                core = cores[number % len(cores)]
                targets[name].append((listen, start(running(command, listen, core=core))))
        yield targets


async def _measure(
    targets: dict[str, Servers], rounds: int, seconds: float
) -> dict[str, tuple[float, float, float, float]]:
    latencies: dict[str, list[float]] = {name: [] for name in targets}
    cpu_ms: dict[str, list[float]] = {name: [] for name in targets}
    rates: dict[str, list[float]] = {name: [] for name in targets}
    for servers in targets.values():  # warm up
        await _saturated(servers, 1.0)
    for number in range(rounds):
        order = list(targets)
        random.Random(number).shuffle(order)
        for name in order:
            servers = targets[name]
            port = servers[0][0]
            found = await paced(port, request(port, BODY), PER_SECOND, seconds)
            latencies[name].append(statistics.median(found))
            before = _cpu(servers)
            rates[name].append(await _saturated(servers, seconds))
            cpu_ms[name].append(1000 * (_cpu(servers) - before) / (rates[name][-1] * seconds))
    bare = latencies["in process"]
    return {
        name: (
            statistics.median(latencies[name]),
            statistics.median(a - b for a, b in zip(latencies[name], bare, strict=True)),
            statistics.median(cpu_ms[name]),
            statistics.median(rates[name]),
        )
        for name in targets
    }


async def _saturated(servers: Servers, seconds: float) -> float:
    """Requests a second of all servers together."""
    loads = [
        saturating(port, request(port, BODY), CONNECTIONS // len(servers), seconds)
        for port, _ in servers
    ]
    return sum(await asyncio.gather(*loads))


def _cpu(servers: Sequence[tuple[int, int]]) -> float:
    return sum(cpu_seconds(process) for _, process in servers)


if __name__ == "__main__":
    typer.run(main)
