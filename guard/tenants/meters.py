"""Counters of requests, tokens and running requests, in memory: no request waits for a database."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from guard.errors import BudgetExhausted, TooManyRequests
from guard.tenants.levels import LevelSettings

Clock = Callable[[], float]
Now = Callable[[], datetime]


def utc_now() -> datetime:
    return datetime.now(UTC)


def period_of(moment: datetime) -> str:
    """The calendar month that a budget is for: "2026-11"."""
    return f"{moment.year:04}-{moment.month:02}"


@dataclass(frozen=True, slots=True)
class RateLimit:
    """A limit a minute: what is left of it, and the seconds until all of it is back."""

    limit: int
    remaining: int
    reset_s: float


@dataclass(slots=True)
class _Bucket:
    """Holds a minute's worth, and fills evenly; a request may cost more than is left."""

    per_minute: int
    left: float
    filled_at: float

    def set(self, left: float, now: float) -> None:
        """Take what is left of the count that servers keep together."""
        self.left, self.filled_at = left, now

    def fill(self, now: float) -> None:
        self.left += (now - self.filled_at) * self.per_minute / 60
        self.left = min(self.left, float(self.per_minute))
        self.filled_at = now

    def wait_s(self) -> float:
        """Seconds until one may be taken."""
        # the returned wait must suffice in spite of rounding
        return 0.0 if self.left >= 1 - 1e-9 else (1 - self.left) * 60 / self.per_minute

    def as_limit(self) -> RateLimit:
        full_s = (self.per_minute - self.left) * 60 / self.per_minute
        return RateLimit(self.per_minute, max(0, math.floor(self.left + 1e-9)), full_s)


@dataclass(slots=True)
class Spent:
    """Requests and tokens that are not in the database yet."""

    requests: int = 0
    tokens: int = 0


Period = str
Pending = dict[tuple[str, Period], Spent]
"""By the name of the counters and the month."""


class Meter:
    """The counters of one level: an organisation, a team or a key. A Ledger guards them."""

    def __init__(self, name: str, title: str, *, is_stored: bool) -> None:
        """`name` is that of its counters, `title` what clients are told; those that are stored
        go into the database."""
        self.name, self.title, self.is_stored = name, title, is_stored
        self.requests: _Bucket | None = None
        self.tokens: _Bucket | None = None
        self.concurrent: int | None = None
        self.budget: int | None = None
        self.running = 0
        self.is_limited = False
        self.is_shared = False
        """Whether it has a limit that servers count together as they go: a budget is not one."""

    def limit(self, settings: LevelSettings, now: float) -> None:
        """Take new limits; what was used of the old ones stays used."""
        self.requests = _limited(self.requests, settings.requests_per_minute, now)
        self.tokens = _limited(self.tokens, settings.tokens_per_minute, now)
        self.concurrent, self.budget = settings.concurrent_requests, settings.tokens_per_month
        limits = (self.requests, self.tokens, self.concurrent, self.budget)
        self.is_limited = any(each is not None for each in limits)
        self.is_shared = any(each is not None for each in limits[:3])


def _limited(bucket: _Bucket | None, per_minute: int | None, now: float) -> _Bucket | None:
    if per_minute is None:
        return None
    if bucket is None:
        return _Bucket(per_minute, float(per_minute), now)
    bucket.fill(now)
    used = bucket.per_minute - bucket.left
    return _Bucket(per_minute, per_minute - used, now)


@dataclass(eq=False, slots=True)
class Lease:
    """One admitted request: it counts as running until it is closed."""

    ledger: Ledger
    meters: Sequence[Meter]
    is_open: bool = True

    @property
    def counts_tokens(self) -> bool:
        """Whether it matters how many tokens the request uses."""
        return any(meter.is_stored or meter.tokens is not None for meter in self.meters)

    def spend(self, tokens: int) -> None:
        """Count tokens of the request, also behind its end."""
        if tokens > 0:
            self.ledger.spend(self.meters, tokens)

    def close(self) -> None:
        """The request runs no longer; closing twice is allowed."""
        if self.is_open:
            self.is_open = False
            self.ledger.end(self.meters)


@dataclass(slots=True)
class Ledger:
    """All counters of one process; thread-safe. `clock` returns monotonic seconds."""

    clock: Clock = time.monotonic
    now: Now = utc_now
    meters: dict[str, Meter] = field(default_factory=dict)
    _pending: Pending = field(default_factory=dict)
    _writing: Pending = field(default_factory=dict)
    _stored: dict[tuple[str, Period], int] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def meter(
        self, name: str, title: str, settings: LevelSettings, *, is_stored: bool = True
    ) -> Meter:
        """The counters of that name, under these limits."""
        with self._lock:
            meter = self.meters.setdefault(name, Meter(name, title, is_stored=is_stored))
            meter.limit(settings, self.clock())
        return meter

    async def admit(self, meters: Sequence[Meter]) -> Lease:
        """As `take`; a ledger that counts with other servers may have to ask."""
        return self.take(meters)

    def take(self, meters: Sequence[Meter]) -> Lease:
        """Count a request on every level, or on none.

        Raises TooManyRequests over a limit, and BudgetExhausted over a budget of tokens.
        """
        moment = self.now()
        period = period_of(moment)
        with self._lock:
            now = self.clock()
            self._check_all(meters, now, moment)
            self._count(meters, period)
        return Lease(self, meters)

    def _check_all(self, meters: Sequence[Meter], now: float, moment: datetime) -> None:
        for meter in meters:
            if meter.is_limited:
                self._check(meter, now, moment)

    def _count(self, meters: Sequence[Meter], period: Period) -> None:
        for meter in meters:
            meter.running += 1
            if meter.requests is not None:
                meter.requests.left -= 1
            if meter.is_stored:
                self._spent(meter, period).requests += 1

    def _check(self, meter: Meter, now: float, moment: datetime) -> None:
        if meter.budget is not None and self._used(meter, period_of(moment)) >= meter.budget:
            raise BudgetExhausted(
                f"{meter.title} has used its {meter.budget} tokens of this month: ask the "
                "operator for more, or wait for the next month.",
                retry_after=_until_next_month(moment),
            )
        if meter.concurrent is not None and meter.running >= self._slots(meter):
            raise TooManyRequests(
                f"{meter.title} may have {meter.concurrent} requests running at the same time: "
                "try again when one has ended.",
                retry_after=1.0,
            )
        for bucket, what in ((meter.requests, "requests"), (meter.tokens, "tokens")):
            if bucket is None:
                continue
            bucket.fill(now)
            if (wait_s := bucket.wait_s()) > 0:
                verb = "send" if what == "requests" else "use"
                raise TooManyRequests(
                    f"{meter.title} may {verb} {bucket.per_minute} {what} a minute: "
                    f"try again in {wait_s:.1f} s",
                    retry_after=wait_s,
                )

    def _slots(self, meter: Meter) -> int:
        """How many requests of a level may run here."""
        assert meter.concurrent is not None
        return meter.concurrent

    def spend(self, meters: Sequence[Meter], tokens: int) -> None:
        """Count tokens on every level."""
        period = period_of(self.now())
        with self._lock:
            now = self.clock()
            for meter in meters:
                self._spend(meter, tokens, now)
                if meter.is_stored:
                    self._spent(meter, period).tokens += tokens

    def _spend(self, meter: Meter, tokens: int, now: float) -> None:
        if meter.tokens is not None:
            meter.tokens.fill(now)
            meter.tokens.left -= tokens

    def end(self, meters: Sequence[Meter]) -> None:
        """A request has ended."""
        with self._lock:
            for meter in meters:
                meter.running -= 1

    def rate_limits(self, meters: Sequence[Meter]) -> tuple[RateLimit | None, RateLimit | None]:
        """Of requests and of tokens, the limit with the least left; None where there is none."""
        with self._lock:
            now = self.clock()
            requests = [m.requests for m in meters if m.requests is not None]
            tokens = [m.tokens for m in meters if m.tokens is not None]
            for bucket in (*requests, *tokens):
                bucket.fill(now)
            return _tightest(requests), _tightest(tokens)

    def begin_writing(self) -> Pending:
        """What the database does not have yet. `end_writing` says what became of it."""
        with self._lock:
            self._writing, self._pending = self._pending, {}
            return dict(self._writing)

    def end_writing(self, *, written: bool) -> None:
        """What was being written is in the database, or is to be written again."""
        with self._lock:
            for key, spent in self._writing.items():
                if written:
                    # until the totals of all servers are read
                    self._stored[key] = self._stored.get(key, 0) + spent.tokens
                else:
                    kept = self._pending.setdefault(key, Spent())
                    kept.requests += spent.requests
                    kept.tokens += spent.tokens
            self._writing = {}

    def set_stored(self, tokens: dict[tuple[str, Period], int]) -> None:
        """Tokens that the database has, of all servers, where these have changed."""
        period = period_of(self.now())
        with self._lock:
            self._stored.update(tokens)
            # a server whose clock is ahead may be in the next month already
            if any(key[1] < period for key in self._stored):
                self._stored = {k: used for k, used in self._stored.items() if k[1] >= period}

    def _used(self, meter: Meter, period: Period) -> int:
        """Tokens of a month; what other servers have spent is known with a delay."""
        key = (meter.name, period)
        unwritten = (part.get(key) for part in (self._pending, self._writing))
        return self._stored.get(key, 0) + sum(each.tokens for each in unwritten if each)

    def _spent(self, meter: Meter, period: Period) -> Spent:
        return self._pending.setdefault((meter.name, period), Spent())


def _tightest(buckets: Sequence[_Bucket]) -> RateLimit | None:
    limits = (bucket.as_limit() for bucket in buckets)
    return min(limits, key=lambda limit: limit.remaining, default=None)


def _until_next_month(moment: datetime) -> float:
    year, month = divmod(moment.year * 12 + moment.month, 12)
    return (datetime(year, month + 1, 1, tzinfo=UTC) - moment).total_seconds()
