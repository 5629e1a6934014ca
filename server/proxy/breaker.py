"""A circuit breaker: an upstream that keeps failing gets no requests for a while, then one."""

from __future__ import annotations

import time
from collections.abc import Callable


class Breaker:
    """Opens after `failures` in a row. After `cooldown_s` it lets one request try, which closes or
    reopens it. `clock` returns monotonic seconds."""

    def __init__(
        self, failures: int, cooldown_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.failures, self.cooldown_s = failures, cooldown_s
        self._clock = clock
        self._failed = 0
        self._open_until: float | None = None
        self._is_trying = False

    @property
    def wait_s(self) -> float:
        """Seconds until a request may be sent; 0 where one may now."""
        if self._open_until is None:
            return 0.0
        if self._is_trying:
            return self.cooldown_s
        return max(0.0, self._open_until - self._clock())

    def begin(self) -> None:
        """A request is sent."""
        if self._open_until is not None:
            self._is_trying = True

    def succeeded(self) -> None:
        """A request was answered."""
        self._failed, self._open_until, self._is_trying = 0, None, False

    def failed(self) -> None:
        """A request failed."""
        self._failed += 1
        self._is_trying = False
        if self._failed >= self.failures or self._open_until is not None:
            self._open_until = self._clock() + self.cooldown_s

    def gave_up(self) -> None:
        """A request ended without a result: its client hung up."""
        self._is_trying = False
