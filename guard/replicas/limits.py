"""Limits that servers count together: a ledger whose meters are reserved in a store.

A server reserves requests and slots of running requests in advance, as much as it is likely to need
until it asks again, so that most requests are counted without asking. One for which nothing is
reserved waits until the store has been asked. What is reserved is gone for the others: together
they never admit more than the limit. Tokens are known when they were used; each server learns what
the others have used when it asks.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from guard.config.replicas_schema import ReplicasConfig
from guard.errors import LimitsUnavailable, TooManyRequests
from guard.replicas.store import (
    MOST_CLAIMS,
    REPLICA_LIFE_S,
    Claim,
    ReplicaStore,
    Standing,
    StoreUnavailable,
)
from guard.tenants.meters import Lease, Ledger, Meter, Now, period_of, utc_now

logger = logging.getLogger(__name__)

_IDLE_S = 5.0
"""A level that nobody has asked for so long is given back."""
_HEARTBEAT_S = 1.0
_LEAST_TARGET = 4
_ROUNDS = 20
_LEAST_PAUSES = 4
"""The thread sleeps at least so many times as long as an exchange took,"""
_LONGEST_PAUSE_S = REPLICA_LIFE_S / 4
"""but not so long that the others take this server for dead."""


@dataclass(eq=False, slots=True)
class _Share:
    """What this server has of one level.

    Of requests `reserve` are reserved, and `slots` of running ones; `slots_free` are nobody's.
    `waiting` requests need more. `used` were admitted since the last exchange, `unreported` tokens
    spent. `target` is what it would like to have reserved.
    """

    meter: Meter
    asked_at: float
    reserve: int = 0
    slots: int = 0
    slots_free: int = 0
    waiting: int = 0
    used: int = 0
    unreported: int = 0
    target: int = _LEAST_TARGET
    is_known: bool = False


class SharedLedger(Ledger):
    """The counters of one of several servers. `open` starts the thread that asks the store;
    `exchange` asks it once.

    `is_up`, `failures` (of exchanges) and `unshared` (requests without the store, by what became of
    them) are for metrics.
    """

    def __init__(
        self,
        store: ReplicaStore,
        settings: ReplicasConfig,
        clock: Callable[[], float] = time.monotonic,
        now: Now = utc_now,
    ) -> None:
        super().__init__(clock, now)
        self.is_up, self.failures = True, 0
        self.unshared: Counter[str] = Counter({"local": 0, "refused": 0})
        self._store, self._settings = store, settings
        self._shares: dict[str, _Share] = {}
        self._waiters: list[Future[None]] = []
        self._answered_at = clock()
        self._wake, self._stop = threading.Event(), threading.Event()
        self._exchanging = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="limits", daemon=True)

    def open(self) -> None:
        """Start to ask the store."""
        self._thread.start()

    def close(self) -> None:
        """Give back what is reserved."""
        self._stop.set()
        self._wake.set()
        self._thread.join()
        self.exchange()

    async def admit(self, meters: Sequence[Meter]) -> Lease:
        """Count a request on every level, or on none, together with the other servers.

        Raises as `take`, and LimitsUnavailable.
        """
        shared = [meter for meter in meters if meter.is_shared]
        if not shared:
            return self.take(meters)
        for _ in range(_ROUNDS):
            is_stale = self.clock() - self._answered_at > self._settings.offline_s
            if is_stale and not self.is_up:
                return self._alone(meters)
            lease = self._from_reserve(meters, shared) if not is_stale else None
            if lease is not None:
                return lease
            try:
                await self._claim(shared)
            except StoreUnavailable:
                return self._alone(meters)
            except TimeoutError:
                self._note(StoreUnavailable("no answer in time"))
                return self._alone(meters)
        raise TooManyRequests("Too many requests ask at once: try again.", retry_after=1.0)

    def _from_reserve(self, meters: Sequence[Meter], shared: Sequence[Meter]) -> Lease | None:
        """Count a request if enough is reserved. Raises TooManyRequests where the store has nothing
        left, as far as is known."""
        moment = self.now()
        with self._lock:
            now = self.clock()
            shares = [self._share(meter, now) for meter in shared]
            if not all(share.is_known for share in shares):
                return None
            self._check_all(meters, now, moment)
            if any(_lacks(share) for share in shares):
                return None
            for share in shares:
                share.used += 1
                if share.meter.requests is not None:
                    share.reserve -= 1
            self._count(meters, period_of(moment))
        return Lease(self, meters)

    def _share(self, meter: Meter, now: float) -> _Share:
        share = self._shares.get(meter.name)
        if share is None:
            share = self._shares[meter.name] = _Share(meter, now)
        share.asked_at = now
        return share

    async def _claim(self, shared: Sequence[Meter]) -> None:
        """Wait until the store has been asked for these levels. Raises StoreUnavailable, and
        TimeoutError where it takes too long."""
        answered: Future[None] = Future()
        with self._lock:
            now = self.clock()
            shares = [self._share(meter, now) for meter in shared]
            for share in shares:
                share.waiting += 1
            self._waiters.append(answered)
        self._wake.set()
        try:
            async with asyncio.timeout(2 * self._settings.timeout_s):
                await asyncio.wrap_future(answered)
        finally:
            with self._lock:
                for share in shares:
                    share.waiting -= 1

    def _alone(self, meters: Sequence[Meter]) -> Lease:
        """Count a request without the store."""
        if self._settings.unavailable == "refuse":
            self.unshared["refused"] += 1
            raise LimitsUnavailable(
                "The limits of this key cannot be counted now: the servers' store does not answer."
            )
        lease = self.take(meters)
        self.unshared["local"] += 1
        return lease

    def _slots(self, meter: Meter) -> int:
        share = self._shares.get(meter.name)
        if share is None or not share.is_known or not self.is_up:
            return super()._slots(meter)
        return share.slots + share.slots_free

    def _spend(self, meter: Meter, tokens: int, now: float) -> None:
        super()._spend(meter, tokens, now)
        if meter.tokens is not None:
            self._share(meter, now).unreported += tokens

    def exchange(self, *, only_waiting: bool = False) -> bool:
        """Ask the store for all levels that were asked for lately, or for those that requests wait
        for; returns whether it answered."""
        with self._exchanging:
            with self._lock:
                waiters, self._waiters = self._waiters, []
                shares = [s for s in self._shares.values() if s.waiting or not only_waiting]
            error = self._try(shares, is_tick=not only_waiting)
            if error is not None and self.is_up:
                # a connection that was lost may be one no longer
                error = self._try(shares, is_tick=not only_waiting)
            self._note(error)
            for waiter in waiters:
                if not waiter.set_running_or_notify_cancel():
                    continue  # its request has given up
                waiter.set_result(None) if error is None else waiter.set_exception(error)
            return error is None

    def _try(self, shares: Sequence[_Share], *, is_tick: bool) -> StoreUnavailable | None:
        try:
            for start in range(0, max(1, len(shares)), MOST_CLAIMS):
                self._exchange(shares[start : start + MOST_CLAIMS], is_tick=is_tick)
        except StoreUnavailable as error:
            return error
        except Exception:
            logger.exception("limits could not be shared")
            return StoreUnavailable("a fault of this server")
        return None

    def _exchange(self, shares: Sequence[_Share], *, is_tick: bool) -> None:
        with self._lock:
            now = self.clock()
            target = 0 if self._stop.is_set() else None
            claims = [_claim_of(share, now, target, is_tick=is_tick) for share in shares]
        try:
            standings = self._store.exchange(claims)
        except BaseException:
            with self._lock:
                # counted twice at worst; what was given back is lost until buckets fill
                for share, claim in zip(shares, claims, strict=True):
                    share.unreported += claim.tokens_spent
            raise
        with self._lock:
            now = self._answered_at = self.clock()
            for share, standing in zip(shares, standings, strict=True):
                _settle(share, standing, now)
                if is_tick and _is_idle(share, now) and not (share.reserve or share.unreported):
                    del self._shares[share.meter.name]

    def _note(self, error: StoreUnavailable | None) -> None:
        """Tell of a store that stops or begins to answer."""
        if error is None:
            if not self.is_up:
                logger.error("limits are shared again")
            self.is_up = True
            return
        self.failures += 1
        if self.is_up:
            what = "refused" if self._settings.unavailable == "refuse" else "counted here alone"
            logger.error(
                "limits are not shared: %s; requests of keys with limits are %s", error, what
            )
        self.is_up = False

    def _run(self) -> None:
        tick_at = heartbeat_at = 0.0
        while not self._stop.is_set():
            self._wake.wait(max(0.0, tick_at - time.monotonic()))
            self._wake.clear()
            started = time.monotonic()
            is_tick = started >= tick_at
            if is_tick and not self._shares and started < heartbeat_at:
                tick_at = started + self._settings.sync_s
                continue
            self.exchange(only_waiting=not is_tick)
            took_s = time.monotonic() - started
            if is_tick:
                heartbeat_at = started + _HEARTBEAT_S
                tick_at = time.monotonic() + _pause_s(self._settings.sync_s, took_s)


def _pause_s(sync_s: float, took_s: float) -> float:
    """How long the store is not asked after an exchange that took so long."""
    return min(max(sync_s, _LEAST_PAUSES * took_s), _LONGEST_PAUSE_S)


def _lacks(share: _Share) -> bool:
    """Whether the store has to be asked before another request."""
    meter = share.meter
    if meter.requests is not None and share.reserve < 1:
        return True
    return meter.concurrent is not None and meter.running >= share.slots


def _is_idle(share: _Share, now: float) -> bool:
    is_over = now - share.asked_at > _IDLE_S
    return is_over and not share.meter.running and not share.waiting


def _claim_of(share: _Share, now: float, target: int | None, *, is_tick: bool) -> Claim:
    """What to tell and to ask; what it gives back is no longer its own. `target` None is as much as
    is likely to be needed."""
    meter = share.meter
    if is_tick:
        share.target = max(_LEAST_TARGET, 2 * share.used, share.target - share.target // 8)
        share.used = 0
    if target is None:
        target = 0 if _is_idle(share, now) else share.target
    rate = meter.requests.per_minute if meter.requests is not None else None
    returned = share.reserve if rate is None else max(0, share.reserve - target)
    share.reserve -= returned
    spent, share.unreported = share.unreported, 0
    slots_needed = meter.running + share.waiting
    # no more run while the store decides, as it may give the spare ones to others: requests ask,
    # and are not refused
    spare = max(0, share.slots - meter.running)
    share.slots -= spare
    share.slots_free += spare
    return Claim(
        meter.name,
        requests_per_minute=rate,
        returned=returned,
        needed=max(0, share.waiting - share.reserve),
        wanted=max(0, target - share.reserve, share.waiting - share.reserve),
        tokens_per_minute=meter.tokens.per_minute if meter.tokens is not None else None,
        tokens_spent=spent,
        concurrent=meter.concurrent,
        slots_needed=slots_needed,
        slots_wanted=slots_needed + target,
    )


def _settle(share: _Share, standing: Standing, now: float) -> None:
    meter = share.meter
    share.reserve += standing.granted
    share.slots, share.slots_free = standing.slots, standing.slots_free
    share.is_known = True
    if meter.requests is not None:
        meter.requests.set(standing.requests_left + share.reserve, now)
    if meter.tokens is not None:
        meter.tokens.set(standing.tokens_left - share.unreported, now)
