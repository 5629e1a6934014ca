"""A circuit breaker: an upstream that keeps failing gets no requests for a while, then one.

Only what the upstream did wrong opens it. A failure that a single request may have caused, as an
answer that does not come, is a doubt: it counts where requests of several clients are in doubt and
none was answered since they were sent. Where all are of one client, the upstream has to be probed.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from guard.replicas.store import BreakerReport, BreakerState


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
        self._news = _News()

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
        self._news.answered, self._news.opened = True, False
        return self._answers

    def succeeded(self) -> None:
        """An answer has ended well."""
        self._failed, self._open_until, self._try_until = 0, None, None
        self._news = _News(answered=True, succeeded=True)

    def failed(self) -> None:
        """The upstream failed."""
        self._failed += 1
        self._news.failures += 1
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
        self._news.opened = True

    def report(self, upstream: str) -> BreakerReport:
        """What has happened since the last report, for other replicas."""
        news, self._news = self._news, _News()
        return BreakerReport(
            upstream,
            self.failures,
            self.cooldown_s,
            news.answered,
            news.succeeded,
            news.failures,
            news.opened,
        )

    def adopt(self, state: BreakerState) -> None:
        """Take the state of all replicas, which does not have what happened here since."""
        if self._news.succeeded:
            return
        self._failed = state.failures + self._news.failures
        if self._news.answered or self._news.opened:
            return
        if not state.is_open:
            self._open_until = self._try_until = None
        elif self._open_until is None:
            self._open_until = self._clock() + state.open_for_s
            self._doubts.clear()

    def report_again(self, report: BreakerReport) -> None:
        """A report did not arrive: it is a part of the next one."""
        if self._news.succeeded:
            return
        self._news.failures += report.failures
        self._news.succeeded = report.succeeded
        self._news.opened |= report.opened and not self._news.answered
        self._news.answered |= report.answered


@dataclass(slots=True)
class _News:
    """What other replicas have not been told: see `BreakerReport`."""

    answered: bool = False
    succeeded: bool = False
    failures: int = 0
    opened: bool = False
