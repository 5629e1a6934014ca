"""The last requests, with their verdicts, in memory: for whoever watches a server that runs."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from guard.verdict import Verdict

MOST_KEPT = 1000


@dataclass(frozen=True, slots=True, eq=False)
class Finished:
    """A request that has ended, equal to itself alone; `number` counts from 1, `time` is in
    seconds since 1970."""

    number: int
    time: float
    tenant: str
    verdict: Verdict

    def as_dict(self) -> dict[str, Any]:
        """The JSON-ready form: no prompt, no answer, no key, as in a line of the audit log."""
        moment = datetime.fromtimestamp(self.time, UTC).isoformat(timespec="milliseconds")
        return {
            "id": self.number,
            "time": moment.replace("+00:00", "Z"),
            "tenant": self.tenant,
            **self.verdict.as_dict(),
        }


class Follower:
    """Waits, on one event loop, for requests to end."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop, self._event = loop, asyncio.Event()
        self.is_woken = False
        """Whether it has been told of a request since it began to wait."""

    def wake(self) -> None:
        """Called from any thread."""
        self.is_woken = True
        with suppress(RuntimeError):  # the event loop is closed
            self._loop.call_soon_threadsafe(self._event.set)

    async def wait(self) -> None:
        """Until a request has ended since the last call, or the server stops."""
        await self._event.wait()
        self._event.clear()
        self.is_woken = False


class Traffic:
    """The last `most` requests. All methods may be called from any thread."""

    def __init__(self, most: int = MOST_KEPT, now: Callable[[], float] = time.time) -> None:
        self._kept: deque[Finished] = deque(maxlen=most)
        self._lock, self._now = threading.Lock(), now
        self._number = 0
        self._followers: list[Follower] = []
        self.is_stopped = False
        """Whether the server stops, so that nothing more is followed."""

    def add(self, verdict: Verdict, tenant: str) -> None:
        """Keep a request that has just ended, and let go of the oldest one."""
        with self._lock:
            self._number += 1
            self._kept.append(Finished(self._number, self._now(), tenant, verdict))
            sleeping = [each for each in self._followers if not each.is_woken]
        for follower in sleeping:
            follower.wake()

    def since(self, number: int = 0) -> list[Finished]:
        """Those behind the request `number`, the oldest first."""
        with self._lock:
            if self._number <= number:
                return []
            return [each for each in self._kept if each.number > number]

    def find(self, number: int) -> Finished | None:
        """The request `number`; None where it is not among the last ones."""
        with self._lock:
            return next((each for each in self._kept if each.number == number), None)

    @property
    def followers(self) -> int:
        """How many follow."""
        return len(self._followers)

    @contextmanager
    def followed(self) -> Iterator[Follower]:
        """Follow on the running event loop."""
        follower = Follower(asyncio.get_running_loop())
        with self._lock:
            self._followers.append(follower)
        try:
            yield follower
        finally:
            with self._lock:
                self._followers.remove(follower)

    def stop(self) -> None:
        """Let all followers go."""
        with self._lock:
            self.is_stopped, followers = True, [*self._followers]
        for follower in followers:
            follower.wake()
