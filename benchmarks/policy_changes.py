"""Policies that change under load: how soon requests follow, whether one fails, and replays.

    python -m benchmarks.policy_changes [--seconds 20] [--rate 200] [--json]

Two proxies share a database of versions in front of a stub upstream. Each gets half of the
requests, at fixed times, whatever came of those before; every two seconds the policy changes, in
turn by PUT to the first one, by a version in the database as the command makes them, and by an edit
of the file. The time is from the change to the sending of the first request that is decided under
it, by proxy. Then the last 1,000 requests are replayed: from scores, and from texts that were kept,
under a list of patterns that is new to the policy.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import uvloop

from benchmarks.processes import free_port, running
from benchmarks.wire import Connection, request
from guard.config.schema import load_config
from guard.policies.store import store_of
from guard.policies.versions import Change
from guard.tenants.secret import hash_key

EVERY_S = 2.0
SECRET = "sk-bench-admin"
ADMIN = {"Authorization": f"Bearer {SECRET}"}
ACTIONS = ("flag", "observe")
OUTCOMES = {"flag": "flagged", "observe": "pass"}
CONFIG = """
[server]
default_policy = "p"
audit_log = "audit.jsonl"
admin_hash = "{hash}"

[live_policies]
database = "versions.sqlite"

[[patterns]]
name = "words"
source = "words.toml"

[[patterns]]
name = "secrets"
source = "secrets"

[[patterns]]
name = "personal-data"
source = "personal-data"

[policies.p]
guards = ["words", "secrets"]
action = "{action}"
keep_text = true
"""
BODY: dict[str, object] = {
    "model": "stub",
    "messages": [{"role": "user", "content": "a mail to joe@example.com of the marked word"}],
}


@dataclass
class Traffic:
    """What came of requests: when each was sent, and its outcome."""

    sent: list[tuple[float, str]] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)

    def seen(self, changed: float, outcome: str) -> float | None:
        """Seconds from a change to the first request that follows it."""
        first = [at for at, each in self.sent if at >= changed and each == outcome]
        return min(first) - changed if first else None


def main() -> None:
    """Measure, and print lines, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--rate", type=float, default=200.0)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
        result = _measure(stack, Path(folder), arguments.seconds, arguments.rate)
    if arguments.json:
        print(json.dumps(result, indent=2))
    else:
        for name, value in result.items():
            print(f"{name}: {value}")


def _measure(stack: ExitStack, folder: Path, seconds: float, rate: float) -> dict[str, Any]:
    (folder / "words.toml").write_text('[[words]]\nlabel = "WORD"\nwords = ["marked word"]\n')
    config = folder / "config.toml"
    config.write_text(_text(ACTIONS[0]))
    stub, *ports = (free_port() for _ in range(3))
    upstream = [sys.executable, "-m", "benchmarks.stub_upstream", "--port", str(stub)]
    stack.enter_context(running(upstream, stub))
    for port in ports:
        proxy = [sys.executable, "-m", "guard", "proxy", "--config", str(config), "--port"]
        options = [str(port), "--upstream", f"http://127.0.0.1:{stub}"]
        stack.enter_context(running([*proxy, *options], port))
    result = uvloop.run(_load(ports, config, seconds, rate))
    return result | _replays(ports[0])


def _text(action: str) -> str:
    return CONFIG.format(hash=hash_key(SECRET), action=action)


async def _load(ports: list[int], config: Path, seconds: float, rate: float) -> dict[str, Any]:
    for port in ports:
        warm = await Connection.open(port)
        for _ in range(50):
            await warm.ask(request(port, BODY))
        warm.close()
    traffic = {port: Traffic() for port in ports}
    sending = [
        asyncio.create_task(_send(port, each, rate / len(ports), seconds))
        for port, each in traffic.items()
    ]
    changes = await asyncio.to_thread(_change, ports[0], config, seconds)
    await asyncio.gather(*sending)
    found: dict[str, list[float]] = {}
    unseen = 0
    for way, at, action in changes:
        for name, each in zip(("first", "second"), traffic.values(), strict=True):
            delay = each.seen(at, OUTCOMES[action])
            if delay is None:
                unseen += 1
            else:
                found.setdefault(f"{way}, {name} proxy", []).append(delay)
    return {
        "requests": sum(len(each.sent) for each in traffic.values()),
        "requests that failed": dict(sum((t.failures for t in traffic.values()), Counter())),
        "changes": len(changes),
        "changes that a proxy never followed": unseen,
        "seen after, ms (median, longest)": {
            name: [round(1000 * statistics.median(each)), round(1000 * max(each))]
            for name, each in found.items()
        },
    }


async def _send(port: int, traffic: Traffic, rate: float, seconds: float) -> None:
    raw = request(port, BODY)
    idle: list[Connection] = []

    async def send() -> None:
        at = time.time()
        try:
            connection, (status, body) = await _answered(port, idle, raw)
        except (OSError, EOFError, ValueError) as error:
            traffic.failures[type(error).__name__] += 1
            return
        if status != 200:
            traffic.failures[str(status)] += 1
            return
        idle.append(connection)
        traffic.sent.append((at, json.loads(body)["guard"]["outcome"]))

    begun, tasks = time.perf_counter(), []
    for number in range(int(rate * seconds)):
        await asyncio.sleep(max(0.0, begun + number / rate - time.perf_counter()))
        tasks.append(asyncio.create_task(send()))
    await asyncio.gather(*tasks)
    for connection in idle:
        connection.close()


async def _answered(
    port: int, idle: list[Connection], raw: bytes
) -> tuple[Connection, tuple[int, bytes]]:
    """The answer, and the connection it came by. One that the server has closed for having been
    idle is not a failure: clients ask once more by another."""
    if idle:
        connection = idle.pop()
        with suppress(OSError, EOFError):
            return connection, await connection.respond(raw)
    connection = await Connection.open(port)
    return connection, await connection.respond(raw)


def _change(port: int, path: Path, seconds: float) -> list[tuple[str, float, str]]:
    """Change the policy every two seconds; each change with its way, time and action."""
    changes: list[tuple[str, float, str]] = []
    store = store_of(load_config(path))
    url = f"http://127.0.0.1:{port}/guard/v1/policies/p"
    until = time.monotonic() + seconds - 2 * EVERY_S
    for number in count(1):
        time.sleep(EVERY_S)
        if time.monotonic() > until:
            break
        action = ACTIONS[number % 2]
        settings = {**store.current()["p"].settings, "action": action}  # type: ignore[dict-item]
        way = ("PUT", "database", "file")[number % 3]
        at = time.time()
        if way == "PUT":
            answer = httpx.put(url, json={"settings": settings}, headers=ADMIN, timeout=60)
            answer.raise_for_status()
        elif way == "database":
            store.append([Change("p", "put", settings, "command")], store.revision())
        else:
            # a comment of its own: the file may have said the same before
            path.write_text(
                _text(action).replace("[policies.p]", f"[policies.p]\nmessage = '{at}'")
            )
        changes.append((way, at, action))
    store.database.close()
    return changes


def _replays(port: int) -> dict[str, Any]:
    url = f"http://127.0.0.1:{port}/guard/v1/policies/p/replay"
    settings = {
        "scores": {"guards": ["words", "secrets"], "action": "block"},
        "texts": {"guards": ["words", "personal-data"], "action": "block", "keep_text": True},
    }
    result = {}
    for name, each in settings.items():
        begun = time.perf_counter()
        answer = httpx.post(url, json={"settings": each, "last": 1000}, headers=ADMIN, timeout=60)
        answer.raise_for_status()
        found = answer.json()
        result[f"replay from {name}"] = {
            "seconds": round(time.perf_counter() - begun, 2),
            **{key: found[key] for key in ("read", "replayed", "changed", "not_replayed")},
        }
    return result


if __name__ == "__main__":
    main()
