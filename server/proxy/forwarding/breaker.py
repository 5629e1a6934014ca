"""A circuit breaker: an upstream that keeps failing gets no requests for a while, then one.

Only what the upstream did wrong opens it. A failure that a single request may have caused, as an
answer that does not come, is a doubt: it counts where requests of several clients are in doubt and
none was answered since they were sent. Where all are of one client, the upstream has to be probed.
"""

from __future__ import annotations

import time
from collections import Counter
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
        self._answers = 0
        self._doubts: Counter[str] = Counter()
        self._open_until: float | None = None
        self._try_until: float | None = None

    @property
    def wait_s(self) -> float:
        """Seconds until a request may be sent; 0 where one may now."""
        if self._open_until is None:
            return 0.0
        now = self._clock()
        if self._try_until is not None and now < self._try_until:
            return self._try_until - now
        return max(0.0, self._open_until - now)

    def begin(self) -> int:
        """A request is sent; returns the number of answers before it, for `doubt`."""
        if self._open_until is not None:
            # others try once this one has taken long, whatever it waits for
            self._try_until = self._clock() + self.cooldown_s
        return self._answers

    def answered(self) -> int:
        """An answer has begun: the upstream is there. Returns the number of answers."""
        self._answers += 1
        self._open_until = self._try_until = None
        self._doubts.clear()
        return self._answers

    def succeeded(self) -> None:
        """An answer has ended well."""
        self._failed, self._open_until, self._try_until = 0, None, None

    def failed(self) -> None:
        """The upstream failed."""
        self._failed += 1
        self._try_until = None
        if self._failed >= self.failures or self._open_until is not None:
            self._open()

    def doubt(self, answers: int, client: str) -> bool:
        """A request of `client` failed, by its own fault or by the upstream's; return whether to
        probe the upstream. `answers`: their number when it was sent, or when its own began."""
        self._try_until = None
        if answers != self._answers:
            return False  # another request has been answered meanwhile
        self._doubts[client] += 1
        most_of_one = (self.failures + 1) // 2
        counted = sum(min(doubts, most_of_one) for doubts in self._doubts.values())
        if len(self._doubts) > 1 and counted >= self.failures:
            self._open()
            return False
        return self._doubts.total() >= self.failures

    def gave_up(self) -> None:
        """A request ended without a result, by its client's doing."""
        self._try_until = None

    def _open(self) -> None:
        self._open_until = self._clock() + self.cooldown_s
        self._doubts.clear()
