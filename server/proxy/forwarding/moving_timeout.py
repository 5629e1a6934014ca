"""A time limit that moves at no cost: timers are what a proxied request would spend most on."""

from __future__ import annotations

import asyncio
from types import TracebackType


class MovingTimeout:
    """`asyncio.timeout` whose `until` may be set at any time, to `every_s` from then or later.

    Only one timer runs: it looks at `until` every so often.
    """

    def __init__(self, until: float, every_s: float) -> None:
        self.until, self._every_s = until, every_s
        self._loop = asyncio.get_running_loop()
        self._timeout = asyncio.timeout(None)
        self._timer: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> MovingTimeout:
        await self._timeout.__aenter__()
        self._watch()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Raises TimeoutError where the time is over."""
        if self._timer is not None:
            self._timer.cancel()
        await self._timeout.__aexit__(kind, error, trace)

    def _watch(self) -> None:
        now = self._loop.time()
        if now >= self.until:
            self._timer = None
            self._timeout.reschedule(now)
        else:
            self._timer = self._loop.call_at(min(self.until, now + self._every_s), self._watch)
