"""Work on a value that may be long: in the event loop where it is short, else in a thread."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
_AT_ONCE = 500
LONG = 2**16
"""Bytes from which on a value is long: other requests need not wait until it has been read."""


async def run_by_size(size: int, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """The result of `work`, which takes time linear in the `size` (bytes) of what it reads."""
    if size > LONG:
        return await asyncio.to_thread(work, *args, **kwargs)
    return work(*args, **kwargs)


async def by_turns(items: Iterable[T]) -> AsyncIterator[T]:
    """The items, between many of which other requests are let on."""
    for number, item in enumerate(items, 1):
        yield item
        if number % _AT_ONCE == 0:
            await asyncio.sleep(0)
