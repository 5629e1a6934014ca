"""A circuit breaker: who keeps failing is left alone for a while, then tried once."""

from __future__ import annotations

import time
from collections.abc import Callable


class Breaker:
    """Opens after `failures` in a row. After `cooldown_s` one request may try: it closes or opens
    the breaker again. `clock` gives seconds that never go back."""

    def __init__(
        self, failures: int, cooldown_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.failures, self.cooldown_s = failures, cooldown_s
        self._clock = clock
        self._failed = 0
        self._open_until: float | None = None
        self._trying = False

    @property
    def closed(self) -> bool:
        """Whether requests pass as ever."""
        return self._open_until is None

    @property
    def wait_s(self) -> float:
        """Seconds until a request may try; 0 where one may now."""
        if self._open_until is None:
            return 0.0
        if self._trying:
            return self.cooldown_s
        return max(0.0, self._open_until - self._clock())

    def begin(self) -> None:
        """A request is sent."""
        if self._open_until is not None:
            self._trying = True

    def succeeded(self) -> None:
        """One was answered."""
        self._failed, self._open_until, self._trying = 0, None, False

    def failed(self) -> None:
        """One was not."""
        self._failed += 1
        self._trying = False
        if self._failed >= self.failures or self._open_until is not None:
            self._open_until = self._clock() + self.cooldown_s

    def gave_up(self) -> None:
        """One ended without telling: its client hung up."""
        self._trying = False
