"""Work in a thread, of many callers by turns: none waits long for what another has sent.

Callers take turns by the cost of what they send, and so do the calls of one caller. A batch is so
small that whoever comes next waits for milliseconds.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from starlette.types import Scope

from guard.errors import TooManyRequests
from guard.tenants.keys import Principal

T = TypeVar("T")
R = TypeVar("R")
_TOTAL = 4
"""The limits of so many callers are what all callers together may have queued."""
_LONGEST_DEBT = 64
"""Turns that a caller waits at most for one item that cost more than a turn."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose text is read: `tenant` of the API key, "" without keys, and the `connection`."""

    tenant: str = ""
    connection: str = ""

    @property
    def client(self) -> str:
        """What clients are told apart by: without keys, their addresses."""
        return self.tenant or self.connection.partition(" ")[0]

    @property
    def turn(self) -> str:
        """What callers are told apart by: without keys, their connections."""
        return self.tenant or self.connection


def caller_of(key: Principal | None, scope: Scope) -> Caller:
    """The caller of a request with `key`."""
    host, port = scope.get("client") or ("", 0)
    return Caller(key.tenant if key else "", f"{host} {port}")


@dataclass(slots=True, eq=False)
class _Call(Generic[T, R]):
    """Items of one call; the results of those from `next` on are to come."""

    turn: str
    items: Sequence[T]
    costs: Sequence[int]
    done: asyncio.Future[None]
    results: dict[int, R] = field(default_factory=dict)
    next: int = 0


class Turns(Generic[T, R]):
    """The calls that wait, and whose turn it is: a deficit round robin by cost."""

    def __init__(self, quantum: int) -> None:
        self._quantum = quantum
        self._calls: dict[str, deque[_Call[T, R]]] = {}
        self._credit: dict[str, int] = {}
        self._order: deque[str] = deque()

    def __bool__(self) -> bool:
        return bool(self._order)

    def put(self, call: _Call[T, R]) -> None:
        """Add a call with at least one item."""
        if call.turn not in self._calls:
            self._calls[call.turn] = deque()
            self._credit[call.turn] = self._quantum
            self._order.append(call.turn)
        self._calls[call.turn].append(call)

    def take(self, most_items: int, most_cost: int) -> list[tuple[_Call[T, R], int]]:
        """The next items, each with its call: at least one where any waits."""
        taken: list[tuple[_Call[T, R], int]] = []
        cost = 0
        while self._order and len(taken) < most_items:
            turn = self._order[0]
            calls = self._calls[turn]
            call = calls[0]
            if call.done.done():  # its caller has given up
                calls.popleft()
            else:
                item_cost = call.costs[call.next]
                if taken and cost + item_cost > most_cost:
                    return taken
                if self._credit[turn] <= 0:
                    self._credit[turn] += self._quantum
                    self._order.rotate(-1)
                    continue
                self._credit[turn] -= min(item_cost, _LONGEST_DEBT * self._quantum)
                cost += item_cost
                taken.append((call, call.next))
                call.next += 1
                calls.popleft()
                if call.next < len(call.items):
                    calls.append(call)
            if not calls:
                del self._calls[turn], self._credit[turn]
                self._order.popleft()
        return taken


class FairWorker(Generic[T, R]):
    """Runs `work` on items in a thread of its own, in batches of `most_items` and `most_cost`.

    `limit` is the cost of what one caller may have queued, `done` what is done to it, for the error
    of who has more. To be made and used in one event loop.
    """

    def __init__(
        self,
        work: Callable[[list[T]], Sequence[R]],
        name: str,
        *,
        most_items: int,
        most_cost: int,
        limit: int,
        done: str = "screened",
    ) -> None:
        self._work, self._limit, self._done = work, limit, done
        self._most_items, self._most_cost = most_items, most_cost
        # several turns in a batch
        self._turns: Turns[T, R] = Turns(max(1, most_cost // 8))
        self._queued: dict[str, int] = {}
        self._all_queued = 0
        self._task: asyncio.Task[None] | None = None
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)

    async def run(self, turn: str, items: Sequence[T], costs: Sequence[int]) -> list[R]:
        """The results of `items`. Raises what `work` does, and TooManyRequests where too much of
        this caller waits."""
        if not items:
            return []
        cost = sum(costs)
        self._admit(turn, cost)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        call: _Call[T, R] = _Call(turn, items, costs, done)
        self._queued[turn] = self._queued.get(turn, 0) + cost
        self._all_queued += cost
        self._turns.put(call)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())
        try:
            await done
        finally:
            done.cancel()
            self._all_queued -= cost
            self._queued[turn] -= cost
            if not self._queued[turn]:
                del self._queued[turn]
        return [call.results[index] for index in range(len(items))]

    def close(self) -> None:
        """Stop, and cancel what is queued."""
        if self._task is not None:
            self._task.cancel()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _admit(self, turn: str, cost: int) -> None:
        queued = self._queued.get(turn, 0)
        limit = self._limit
        if self._all_queued > _TOTAL * limit:
            limit = _TOTAL * limit // max(1, len(self._queued))
        # short texts, as those of answers that have begun, are let in a while longer
        if queued and queued + cost > limit * (1 if cost > self._most_cost else 2):
            raise TooManyRequests(
                f"Too much of this key's requests waits to be {self._done}; try again later.",
                retry_after=1.0,
            )

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while batch := self._turns.take(self._most_items, self._most_cost):
            items = [call.items[index] for call, index in batch]
            try:
                results = await loop.run_in_executor(self._pool, self._work, items)
            except Exception as error:
                for call, _ in batch:
                    _end(call, error)
                continue
            for (call, index), result in zip(batch, results, strict=True):
                call.results[index] = result
                if len(call.results) == len(call.items):
                    _end(call, None)


def _end(call: _Call[Any, Any], error: Exception | None) -> None:
    if call.done.done():
        return
    if error is None:
        call.done.set_result(None)
    else:
        call.done.set_exception(error)
