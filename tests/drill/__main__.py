"""The drill: `python -m tests.drill --minutes 30`.

Fifty clients ask two replicas of the proxy, whole and streamed, under a policy that takes addresses
out of requests and answers. Meanwhile replicas are killed, upstreams are killed, PostgreSQL stops,
the disk of the audit logs is full, the policy changes every two seconds, and clients hang up. In
the end: requests that passed unguarded (as the upstreams and the clients saw them), audit lines of
finished requests that are missing or doubled, what `guard audit verify` says, and the memory, files
and threads of the replicas against those before the last third, in which none is killed. Exit
status 1 where something of that does not hold.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from guard.audit.signing import Signer, new_key
from guard.audit.verify import verify
from guard.config.schema import load_config
from guard.tenants.directory import store_of
from guard.tenants.levels import LevelSettings
from tests.drill.clients import Finished, Seen, ask_until
from tests.drill.fleet import KILL, READY_S, STOP, Process, proxies, small_disk, upstreams
from tests.guard.tenants.databases import Postgres

POLICY = "drill"
CONFIG = """
[server]
default_policy = "drill"
audit_log = AUDIT
audit_key = {key}
[tenants]
database = {database}
[live_policies]
database = {database}
[proxy]
drain_timeout_s = 5
[[patterns]]
name = "addresses"
source = "personal-data"
[policies.drill]
guards = ["addresses"]
action = "redact"
"""
UPSTREAM = """
[[upstreams]]
name = "u{number}"
url = "http://127.0.0.1:{port}/v1"
"""
EVERY_S, CHANGE_S = 8.0, 2.0
"""Between two faults, and between two changes of the policy."""
LATE_S = 0.3
"""A replica may be killed between the end of an answer and its line."""
ROOM = 1.05


@dataclass
class Faults:
    """What was broken, and when: kills of replicas, and the times in which the disk was full."""

    counts: Counter[str] = field(default_factory=Counter)
    kills: list[tuple[int, float]] = field(default_factory=list)
    full: list[tuple[float, float]] = field(default_factory=list)
    refused_changes: int = 0

    def explain(self, finished: Finished) -> str:
        """Why the line of a finished request may be missing; "" where nothing explains it."""
        for replica, at in self.kills:
            if replica == finished.replica and at - LATE_S <= finished.at <= at + LATE_S:
                return "at a kill"
        for start, end in self.full:
            if start - LATE_S <= finished.at <= end + LATE_S:
                return "while the disk was full"
        return ""

    def from_kill(self, finished: Finished) -> float:
        """Seconds from the nearest kill of its replica to the end of a request."""
        since = (finished.at - at for replica, at in self.kills if replica == finished.replica)
        return min(since, key=abs, default=math.inf)


class Drill:
    """A fleet, its faults and its clients."""

    def __init__(self, folder: Path, logs: Path, disk_is_small: bool, clients: int) -> None:
        self.postgres = Postgres.new()
        self.logs, self.disk_is_small, self.clients = logs, disk_is_small, clients
        self.faults, self.seen = Faults(), Seen()
        self.folder = folder
        self.upstreams = upstreams(folder, 2)
        config = folder / "config.toml"
        key = folder / "audit.key"
        new_key(key)
        self.public = Signer(key).public
        database = (
            self.postgres.url.render_as_string()
            if self.postgres
            else str(folder / "tenants.sqlite")
        )
        config.write_text(
            CONFIG.format(
                key=json.dumps(str(key)),
                database=json.dumps(database),
            )
            + "".join(
                UPSTREAM.format(number=number, port=each.port)
                for number, each in enumerate(self.upstreams)
            )
        )
        self.replicas = proxies(config, logs, 2)
        store = store_of(load_config(folder / "proxy-0.toml"))
        store.new_organisation("acme", LevelSettings())
        store.new_team("acme", "drill", LevelSettings())
        _, self.key = store.new_key("acme/drill", "clients", LevelSettings())
        _, self.admin = store.new_key(None, "admin", LevelSettings(), role="admin")

    async def run(self, seconds: float) -> dict[str, dict[str, int]]:
        """Break things for so long; the replicas' use at the beginning of the last third."""
        for process in (*self.upstreams, *self.replicas):
            process.start()
        for process in (*self.upstreams, *self.replicas):
            await _answers(process)
        began = time.monotonic()
        end, quiet = began + seconds, began + seconds * 2 / 3
        asking = asyncio.create_task(
            ask_until(
                end, [r.url for r in self.replicas], lambda: self.key, self.clients, self.seen
            )
        )
        changing = asyncio.create_task(self._change_policies(end))
        rng, before = random.Random(7), dict[str, dict[str, int]]()
        while (now := time.monotonic()) + EVERY_S < end:
            if now > quiet and not before:
                await asyncio.sleep(min(10.0, seconds / 12))
                before = {f"replica {i}": r.usage for i, r in enumerate(self.replicas)}
            kinds = [self._kill_upstream, self._fill_disk, self._stop_postgres]
            kinds += [self._kill_replica] * (time.monotonic() < quiet - 15)
            await rng.choice(kinds)(rng)
            await asyncio.sleep(EVERY_S / 2)
        await asking
        await changing
        await asyncio.sleep(5)
        return before

    async def _kill_replica(self, rng: random.Random) -> None:
        number = rng.randrange(len(self.replicas))
        self.faults.counts["replicas killed"] += 1
        self.faults.kills.append((number, time.time()))
        replica = self.replicas[number]
        await asyncio.to_thread(replica.end, KILL)
        await asyncio.sleep(0.5)
        replica.start()
        await _answers(replica)

    async def _kill_upstream(self, rng: random.Random) -> None:
        self.faults.counts["upstreams killed"] += 1
        upstream = rng.choice(self.upstreams)
        await asyncio.to_thread(upstream.end, KILL)
        await asyncio.sleep(2)
        upstream.start()
        await _answers(upstream)

    async def _fill_disk(self, rng: random.Random) -> None:
        if not self.disk_is_small:
            return
        self.faults.counts["disks full"] += 1
        filler, began = self.logs / "filler", time.time()
        try:
            with filler.open("wb") as file:
                while True:
                    file.write(bytes(65536))
                    file.flush()
        except OSError:
            pass
        await asyncio.sleep(3)
        filler.unlink(missing_ok=True)
        self.faults.full.append((began, time.time()))

    async def _stop_postgres(self, rng: random.Random) -> None:
        if self.postgres is None:
            return
        self.faults.counts["PostgreSQL stopped"] += 1
        await asyncio.to_thread(self.postgres.stop)
        await asyncio.sleep(3)
        await asyncio.to_thread(self.postgres.start)

    async def _change_policies(self, end: float) -> None:
        headers, turn = {"authorization": f"Bearer {self.admin}"}, 0
        async with httpx.AsyncClient(headers=headers, timeout=5) as client:
            while time.monotonic() < end:
                await asyncio.sleep(CHANGE_S)
                turn += 1
                settings: dict[str, Any] = {"guards": ["addresses"], "action": "redact"}
                if turn % 4 == 0:
                    settings["action"] = "block"
                url = f"{self.replicas[turn % 2].url}/guard/v1/policies/{POLICY}"
                try:
                    answer = await client.put(url, json={"settings": settings, "why": f"{turn}"})
                    self.faults.refused_changes += answer.status_code >= 400
                    self.faults.counts["changes of the policy"] += answer.status_code < 400
                except httpx.HTTPError:
                    self.faults.refused_changes += 1

    def report(self, before: dict[str, dict[str, int]]) -> bool:
        """Print what was found; whether all of it holds."""
        after = {f"replica {i}": r.usage for i, r in enumerate(self.replicas)}
        for process in (*self.replicas, *self.upstreams):
            process.end(STOP)
        notes = [note for note in self.folder.glob("unguarded-*.txt")]
        arrived = sum(len(note.read_text().splitlines()) for note in notes)
        logs = [self.logs / f"audit-{number}.jsonl" for number in range(len(self.replicas))]
        told = [verify([log], self.public) for log in logs]
        lines = Counter(
            line["request_id"]
            for log in logs
            for text in log.read_text("utf-8", "replace").splitlines()
            if "request_id" in (line := _parsed(text))
        )
        missing = [one for one in self.seen.finished if not lines[one.request_id]]
        why = Counter(self.faults.explain(one) for one in missing)
        for lost in missing:
            if not self.faults.explain(lost):
                print(f"without a line: {lost}, {self.faults.from_kill(lost):.2f} s from a kill")
        doubled = sum(lines[one.request_id] > 1 for one in self.seen.finished)
        grown = [
            f"{name}: {what} from {use[what]} to {after[name][what]}"
            for name, use in before.items()
            for what in use
            if after[name][what] > ROOM * use[what] + (4 if what != "memory, kB" else 0)
        ]
        print("faults:", dict(self.faults.counts), "changes refused:", self.faults.refused_changes)
        print("answers:", dict(self.seen.statuses), "whole:", len(self.seen.finished))
        print("unguarded: requests", arrived, "answers", self.seen.unguarded)
        print("audit lines of whole answers: missing", dict(why), "doubled", doubled)
        for log, one in zip(logs, told, strict=True):
            print(f"{log.name}: {one.summary()}; faults {one.faults}; notes {len(one.notes)}")
        print("use before the last third:", before)
        print("use in the end:", after, "grown:", grown or "nothing")
        sound = not arrived and not self.seen.unguarded and not why[""] and not doubled
        return sound and not grown and not any(one.faults for one in told)


async def _answers(process: Process) -> None:
    """Wait until a server takes requests. Raises SystemExit where it does not."""
    until = time.monotonic() + READY_S
    async with httpx.AsyncClient() as client:
        while True:
            try:
                await client.get(f"{process.url}/health")
                return
            except httpx.HTTPError:
                if time.monotonic() > until:
                    text = process.log.read_text("utf-8", "replace")
                    raise SystemExit(f"it does not start:\n{text[-2000:]}") from None
                await asyncio.sleep(0.1)


def _parsed(text: str) -> dict[str, Any]:
    try:
        return dict(json.loads(text))
    except ValueError:
        return {}  # a torn line of a kill, of which `verify` speaks


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--disk", type=int, default=256, help="MB of the audit logs' disk")
    options = parser.parse_args(arguments)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="drill-")))
        folder.chmod(0o755)
        logs = folder / "logs"
        is_small = stack.enter_context(small_disk(logs, options.disk))
        drill = Drill(folder, logs, is_small, options.clients)
        try:
            before = asyncio.run(drill.run(60 * options.minutes))
            holds = drill.report(before)
        finally:
            for process in (*drill.replicas, *drill.upstreams):
                process.end(KILL)
            if drill.postgres is not None:
                drill.postgres.remove()
    raise SystemExit(not holds)


if __name__ == "__main__":
    main()
