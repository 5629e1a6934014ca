"""Whose turn it is, and how much of one caller may wait."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guard.errors import TooManyRequests
from server.screening.texts.turns import Caller, FairWorker


class _Work:
    """Doubles numbers; `batches` are those that it was given."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.go = threading.Event()
        self.go.set()

    def __call__(self, items: list[int]) -> list[int]:
        assert self.go.wait(10)
        self.batches.append(items)
        if -1 in items:
            raise ValueError("minus one")
        return [2 * item for item in items]


def _worker(work: _Work, *, limit: int = 10_000) -> FairWorker[int, int]:
    return FairWorker(work, "test", most_items=8, most_cost=80, limit=limit)


@given(
    st.lists(st.tuples(st.integers(0, 3), st.lists(st.integers(1, 50), max_size=12)), max_size=8)
)
def test_every_caller_gets_its_own_results(calls: Sequence[tuple[int, list[int]]]) -> None:
    async def run() -> None:
        worker = _worker(_Work())
        results = await asyncio.gather(
            *(worker.run(f"t{turn}", items, items) for turn, items in calls)
        )
        assert results == [[2 * item for item in items] for _, items in calls]
        worker.close()

    asyncio.run(run())


def test_batches_are_bounded_in_items_and_cost() -> None:
    async def run() -> None:
        work = _Work()
        worker = _worker(work)
        await worker.run("a", [1] * 20 + [200], [1] * 20 + [200])
        assert [len(batch) for batch in work.batches] == [8, 8, 4, 1]
        await worker.run("a", [50, 50], [50, 50])
        assert work.batches[4:] == [[50], [50]]
        worker.close()

    asyncio.run(run())


def test_turns_go_by_cost_not_by_count() -> None:
    async def run() -> None:
        work = _Work()
        work.go.clear()
        worker = _worker(work)
        first = asyncio.create_task(worker.run("first", [0], [1]))
        await asyncio.sleep(0.02)
        tasks = [
            asyncio.create_task(worker.run("dear", [9] * 30, [40] * 30)),
            asyncio.create_task(worker.run("cheap", [1] * 30, [4] * 30)),
        ]
        await asyncio.sleep(0.02)
        work.go.set()
        await asyncio.gather(first, *tasks)
        flat = [item for batch in work.batches for item in batch]
        last_cheap = max(index for index, item in enumerate(flat) if item == 1)
        assert flat[:last_cheap].count(9) <= 6, "120 of either, not thirty items of each"
        worker.close()

    asyncio.run(run())


def test_what_fails_fails_for_its_batch_alone() -> None:
    async def run() -> None:
        worker = _worker(_Work())
        with pytest.raises(ValueError, match="minus one"):
            await worker.run("a", [1, -1], [1, 1])
        assert await worker.run("a", [1], [1]) == [2]
        worker.close()

    asyncio.run(run())


def test_one_caller_can_have_so_much_queued_and_others_still_come_in() -> None:
    async def run() -> None:
        work = _Work()
        work.go.clear()
        worker = _worker(work, limit=1000)
        tasks = [asyncio.create_task(worker.run("a", [1], [900]))]
        await asyncio.sleep(0.02)
        with pytest.raises(TooManyRequests):
            await worker.run("a", [1], [200])
        tasks += [asyncio.create_task(worker.run("a", [1], [10])) for _ in range(20)]
        tasks.append(asyncio.create_task(worker.run("b", [1], [2000])))
        await asyncio.sleep(0.02)
        work.go.set()
        assert all(await asyncio.gather(*tasks))
        assert await worker.run("a", [1], [1000]) == [2], "what was read no longer counts"
        worker.close()

    asyncio.run(run())


def test_without_keys_connections_take_turns() -> None:
    assert Caller("t", "127.0.0.1 1").turn == "t"
    assert Caller("", "127.0.0.1 1").turn != Caller("", "127.0.0.1 2").turn
