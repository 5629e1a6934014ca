"""What identifying a request costs: `python -m benchmarks.tenants`.

A key with limits on all three levels and a required policy, beside a server without keys: from the
headers to the policy, the headers of the answer, and the tokens that are counted. The thread that
writes what was used runs as in a server.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import typer
from starlette.datastructures import Headers

from guard.config.schema import Config
from guard.tenants.directory import open_directory, store_of
from guard.tenants.keys import KeyRing
from guard.tenants.levels import LevelSettings
from server.auth import admit, authenticate, choose_policy
from server.observe.exchange import Exchange

REQUESTS = 5000
LIMITS = LevelSettings(
    requests_per_minute=10**9,
    tokens_per_minute=10**12,
    concurrent_requests=1000,
    tokens_per_month=10**14,
)


def main() -> None:
    """Print the median and the 99th percentile of both, in microseconds."""
    with tempfile.TemporaryDirectory() as folder:
        config = Config.model_validate(
            {
                "tenants": {"database": str(Path(folder) / "tenants.sqlite")},
                "policies": {
                    "strict": {"guards": ["a", "b"]},
                    "stricter": {"guards": ["a", "b", "c"], "action": "block"},
                },
            }
        )
        key = _seed(config)
        with open_directory(config) as directory:
            assert directory is not None
            ring = KeyRing([], directory)
            for name, keys in (("open", None), ("keys", ring)) * 3:
                times = asyncio.run(_measured(partial(_request, config, keys, key)))
                median, late = times[len(times) // 2], times[len(times) * 99 // 100]
                print(f"{name}: median {1e6 * median:.1f} us, 99 % in {1e6 * late:.1f} us")


def _seed(config: Config) -> str:
    store = store_of(config)
    store.new_organisation("acme", LIMITS.changed({"required": ["strict"]}))
    store.new_team("acme", "research", LIMITS)
    _, key = store.new_key("acme/research", "laptop", LIMITS.changed({"policies": ["stricter"]}))
    store.database.close()
    return key


async def _request(config: Config, ring: KeyRing | None, key: str) -> None:
    pairs = [(b"authorization", f"Bearer {key}".encode()), (b"x-guard-policy", b"stricter")]
    scope = {"type": "http", "path": "/v1/chat/completions", "headers": pairs}
    exchange, headers = Exchange.of(scope), Headers(scope=scope)
    principal = authenticate(ring, headers)
    exchange.identify(config, ring, principal)
    await admit(ring, principal, exchange)
    choose_policy(config, principal, "model", headers, None)
    exchange.headers()
    exchange.spend(100)
    exchange.end()


async def _measured(request: Callable[[], Awaitable[None]]) -> list[float]:
    times = []
    for _ in range(REQUESTS):
        started = time.perf_counter()
        await request()
        times.append(time.perf_counter() - started)
    return sorted(times)


if __name__ == "__main__":
    typer.run(main)
