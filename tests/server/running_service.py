"""Shared by running services in tests: engines that pause and fail, and records of verdicts."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from guard.audit import AuditLog
from guard.config.schema import Config
from guard.verdict import Verdict
from server.observe.metrics import Metrics
from server.observe.recorder import Recorder

S = TypeVar("S")
E = TypeVar("E")


class StepControl:
    """A mixin for engines, whose steps call `pause` first.

    With `go` cleared, the engine waits before its next step and sets `stalled`. It sleeps `pace_s`
    before each step, and raises the next of `faults`, and `reset_fault` from `reset`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.go = threading.Event()
        self.go.set()
        self.stalled = threading.Event()
        self.faults: list[Exception] = []
        self.reset_fault: Exception | None = None
        self.steps, self.pace_s = 0, 0.0
        super().__init__(*args, **kwargs)

    def pause(self) -> None:
        time.sleep(self.pace_s)
        if not self.go.is_set():
            self.stalled.set()
            assert self.go.wait(20)
        if self.faults:
            raise self.faults.pop()

    def check_reset(self) -> None:
        if self.reset_fault is not None:
            raise self.reset_fault


@dataclass
class Records:
    """Metrics and verdicts of a service; call it as the service's `record`."""

    recorder: Recorder
    metrics: Metrics
    verdicts: list[Verdict] = field(default_factory=list)

    def __call__(self, request: Any, verdict: Verdict) -> None:
        self.recorder(request, verdict)
        self.verdicts.append(verdict)


@contextmanager
def recording(config: Config) -> Iterator[Records]:
    """Records with the audit log of `config`."""
    assert config.server.audit_log is not None
    metrics = Metrics()
    with AuditLog(config.server.audit_log) as audit:
        yield Records(Recorder(metrics.verdicts, audit), metrics)


@dataclass
class RunningService(Generic[S, E]):
    """A service as `guard serve` builds it, its engine, and its records."""

    folder: Path
    config: Config
    service: S
    engine: E
    records: Records

    @property
    def metrics(self) -> Metrics:
        return self.records.metrics

    @property
    def verdicts(self) -> list[Verdict]:
        return self.records.verdicts

    def audit(self) -> list[dict[str, Any]]:
        return audit_lines(self.folder)


def audit_lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "audit.jsonl").read_text().splitlines()]


def run(work: Callable[[], Awaitable[Any]]) -> Any:
    """The result of `work` on a new event loop, within 20 seconds."""

    async def limited() -> Any:
        async with asyncio.timeout(20):
            return await work()

    return asyncio.run(limited())


async def until(holds: Callable[[], bool]) -> None:
    while not holds():
        await asyncio.sleep(0.005)
