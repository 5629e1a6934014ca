"""A time limit that moves."""

from __future__ import annotations

import asyncio
import time

import pytest

from server.proxy.forwarding.moving_timeout import MovingTimeout


def _run(seconds: float, until: float, moved: float | None = None, every_s: float = 0.05) -> float:
    """Sleep under a limit that is moved at once; return how long it took."""

    async def run() -> None:
        loop = asyncio.get_running_loop()
        async with MovingTimeout(loop.time() + until, every_s) as timeout:
            if moved is not None:
                timeout.until = loop.time() + moved
            await asyncio.sleep(seconds)

    started = time.monotonic()
    asyncio.run(run())
    return time.monotonic() - started


def test_what_is_over_in_time_is_left_alone() -> None:
    assert _run(0.1, 5) < 2


@pytest.mark.parametrize(("until", "moved"), [(0.2, None), (5, 0.2), (0.0, None)])
def test_what_takes_longer_is_ended(until: float, moved: float | None) -> None:
    started = time.monotonic()
    with pytest.raises(TimeoutError):
        _run(10, until, moved)
    assert time.monotonic() - started < 3


def test_a_limit_that_moves_away_ends_nothing() -> None:
    assert _run(0.4, 0.2, moved=5) >= 0.4


def test_other_errors_and_cancellation_pass() -> None:
    async def run() -> None:
        with pytest.raises(KeyError):
            async with MovingTimeout(asyncio.get_running_loop().time() + 5, 1):
                raise KeyError

        async def sleep() -> None:
            async with MovingTimeout(asyncio.get_running_loop().time() + 5, 1):
                await asyncio.sleep(5)

        task = asyncio.create_task(sleep())
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
