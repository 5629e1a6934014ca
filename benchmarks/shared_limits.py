"""What limits cost that servers count together: `python -m benchmarks.shared_limits`.

First the counting alone: from a request's admission to its end, on three levels, in one loop. Then
proxies side by side before one stub upstream, each on one core, for a key with a limit: counted
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
import time
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
from guard.config.replicas_schema import ReplicasConfig
from guard.replicas.opening import open_replicas
from guard.tenants.levels import LevelSettings
from guard.tenants.meters import Ledger
from guard.tenants.secret import hash_key

KEY = f"""
[[keys]]
hash = "{hash_key("sk-bench")}"
tenant = "bench"
requests_per_minute = 1000000
"""
LIMITS = LevelSettings(
    requests_per_minute=10**9, tokens_per_minute=10**12, concurrent_requests=1000
)
COUNTED = 2000
"""Requests of a round."""
Servers = list[tuple[int, int]]
"""The port and the process of each proxy."""


def main(
    postgresql: Annotated[str | None, typer.Option(help="URL of a database to count in.")] = None,
    rounds: Annotated[int, typer.Option(min=1)] = 5,
    seconds: Annotated[float, typer.Option(min=0.5)] = 3.0,
) -> None:
    """Measure, and print a table."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    with _redis() as store:
        stores = {"in process": None, "Redis": store, "PostgreSQL": postgresql}
        counting = Table("counting", "median us", "99 % us")
        for name, url in stores.items():
            if url is not None or name == "in process":
                median, late = uvloop.run(_counting(url, rounds))
                counting.add_row(name, f"{median:.1f}", f"{late:.1f}")
        Console().print(counting)
        with _targets(store, postgresql) as targets:
            rows = uvloop.run(_measure(targets, rounds, seconds))
    table = Table("limits", "p50 ms", "beside in process", "CPU ms a request", "requests/s")
    for name, (p50, added, cpu_ms, rate) in rows.items():
        table.add_row(name, f"{p50:.2f}", f"{added:+.3f}", f"{cpu_ms:.3f}", f"{rate:.0f}")
    Console().print(table)


@contextmanager
def _redis() -> Iterator[str]:
    server = shutil.which("redis-server")
    if server is None:
        raise SystemExit("this needs Redis (Debian: apt-get install redis-server)")
    port = free_port()
    with (
        tempfile.TemporaryDirectory() as folder,
        running([server, "--port", str(port), "--save", ""], port, folder=Path(folder)),
    ):
        yield f"redis://127.0.0.1:{port}/0"


async def _counting(url: str | None, rounds: int) -> tuple[float, float]:
    """Median and 99th percentile of the time that counting one request takes, in microseconds."""
    settings = ReplicasConfig(store=url, name="counting")
    with open_replicas(settings) as replicas:
        ledger = replicas.ledger if replicas is not None else Ledger()
        meters = [ledger.meter(name, name, LIMITS) for name in ("key", "team", "organisation")]
        times = []
        for _ in range(COUNTED * rounds):
            started = time.perf_counter()
            lease = await ledger.admit(meters)
            lease.spend(100)
            lease.close()
            times.append(1e6 * (time.perf_counter() - started))
            # as a server does between two requests
            await asyncio.sleep(0)
    return statistics.median(times), statistics.quantiles(times, n=100)[98]


@contextmanager
def _targets(store: str, postgresql: str | None) -> Iterator[dict[str, Servers]]:
    with ExitStack() as stack:
        start = stack.enter_context
        folder = Path(start(tempfile.TemporaryDirectory()))
        stub = free_port()
        command = [sys.executable, "-m", "benchmarks.stub_upstream", "--port", str(stub)]
        start(running(command, stub))
        redis = f'store = "{store}"'
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
