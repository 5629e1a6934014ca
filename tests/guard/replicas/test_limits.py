"""What every ledger keeps, whether its servers are one process or count in a store."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

import pytest

from guard.config.replicas_schema import ReplicasConfig
from guard.errors import TooManyRequests
from guard.replicas.limits import SharedLedger
from guard.replicas.store import BreakerReport, BreakerState, Claim, Standing
from guard.tenants.levels import LevelSettings
from guard.tenants.meters import Lease, Ledger, Meter

PATIENCE_S = 30.0
Two = tuple[Ledger, Ledger]


def meters_of(ledgers: Two, name: str = "key k", **limits: int) -> list[Meter]:
    """The same level in both."""
    settings = LevelSettings.model_validate(limits)
    return [ledger.meter(name, "this key", settings, is_stored=False) for ledger in ledgers]


async def admitted(ledger: Ledger, meters: list[Meter]) -> Lease | None:
    try:
        return await ledger.admit(meters)
    except TooManyRequests as error:
        assert error.retry_after > 0
        return None


async def eventually(holds: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < until
        await asyncio.sleep(0.02)


def test_both_together_get_the_limit_and_not_one_more(ledgers: Two) -> None:
    meters = meters_of(ledgers, requests_per_minute=12)

    async def ask() -> list[bool]:
        started = time.monotonic()
        found = [
            await admitted(ledger, [meter]) is not None
            for _ in range(30)
            for ledger, meter in zip(ledgers, meters, strict=True)
        ]
        assert sum(found) <= 12 + (time.monotonic() - started) * 12 / 60 + 1e-6
        return found

    found = asyncio.run(ask())
    # what the other one has reserved may be refused here, until it gives it back
    assert sum(found) >= 12 - 2


def test_many_requests_at_once_get_the_limit(ledgers: Two) -> None:
    meters = meters_of(ledgers, requests_per_minute=40)

    async def ask() -> int:
        started = time.monotonic()
        asked = [
            admitted(ledger, [meter])
            for _ in range(40)
            for ledger, meter in zip(ledgers, meters, strict=True)
        ]
        count = sum(lease is not None for lease in await asyncio.gather(*asked))
        assert count <= 40 + (time.monotonic() - started) * 40 / 60
        return count

    assert asyncio.run(ask()) >= 30


def test_running_requests_are_counted_together(ledgers: Two) -> None:
    meters = meters_of(ledgers, concurrent_requests=3)

    async def ask() -> None:
        leases = []
        for index in (0, 1, 0):
            leases.append(await ledgers[index].admit([meters[index]]))
        for ledger, meter in zip(ledgers, meters, strict=True):
            assert await admitted(ledger, [meter]) is None
        leases[0].close()
        until = time.monotonic() + PATIENCE_S
        while (again := await admitted(ledgers[1], [meters[1]])) is None:
            assert time.monotonic() < until
            await asyncio.sleep(0.02)
        assert await admitted(ledgers[0], [meters[0]]) is None
        for lease in (*leases, again):
            lease.close()

    asyncio.run(ask())


def test_tokens_of_one_are_missing_to_the_other(ledgers: Two) -> None:
    meters = meters_of(ledgers, tokens_per_minute=100)

    async def ask() -> None:
        (await ledgers[0].admit([meters[0]])).spend(150)
        assert await admitted(ledgers[0], [meters[0]]) is None
        until = time.monotonic() + PATIENCE_S
        while await admitted(ledgers[1], [meters[1]]) is not None:
            assert time.monotonic() < until
            await asyncio.sleep(0.02)
        _, tokens = ledgers[1].rate_limits([meters[1]])
        assert tokens is not None and tokens.remaining == 0 and tokens.reset_s > 60

    asyncio.run(ask())


def test_a_request_counts_on_every_level_or_on_none(ledgers: Two) -> None:
    keys = meters_of(ledgers, "key k", requests_per_minute=100)
    teams = meters_of(ledgers, "team t", requests_per_minute=2)

    async def ask() -> None:
        for _ in range(2):
            assert await admitted(ledgers[0], [keys[0], teams[0]]) is not None
        for ledger, key, team in zip(ledgers, keys, teams, strict=True):
            assert await admitted(ledger, [key, team]) is None
        requests, _ = ledgers[0].rate_limits([keys[0]])
        assert requests is not None and requests.remaining in {98, 99}

    asyncio.run(ask())


def test_keys_do_not_use_up_each_others_limits(ledgers: Two) -> None:
    first = meters_of(ledgers, "key 1", requests_per_minute=1)
    second = meters_of(ledgers, "key 2", requests_per_minute=1)

    async def ask() -> None:
        assert await admitted(ledgers[0], [first[0]]) is not None
        assert await admitted(ledgers[1], [first[1]]) is None
        assert await admitted(ledgers[1], [second[1]]) is not None

    asyncio.run(ask())


def test_what_is_left_is_told_of_both(ledgers: Two) -> None:
    meters = meters_of(ledgers, requests_per_minute=100)

    async def ask() -> None:
        for index in (0, 1) * 5:
            await ledgers[index].admit([meters[index]])

        def is_told() -> bool:
            found = [ledger.rate_limits([m])[0] for ledger, m in zip(ledgers, meters, strict=True)]
            # what the other has reserved is not left for this one
            return all(each is not None and 80 <= each.remaining <= 93 for each in found)

        await eventually(is_told)

    asyncio.run(ask())


def test_a_request_that_gives_up_while_the_store_is_asked_costs_nothing(ledgers: Two) -> None:
    meters = meters_of(ledgers, concurrent_requests=1)

    async def ask() -> None:
        task = asyncio.create_task(ledgers[0].admit([meters[0]]))
        await asyncio.sleep(0)
        task.cancel()
        lease = (await asyncio.gather(task, return_exceptions=True))[0]
        if isinstance(lease, Lease):
            lease.close()
        until = time.monotonic() + PATIENCE_S
        while await admitted(ledgers[1], [meters[1]]) is None:
            assert time.monotonic() < until
            await asyncio.sleep(0.02)

    asyncio.run(ask())


def test_a_replica_that_stops_gives_back_what_it_has_reserved(ledgers: Two) -> None:
    first, second = ledgers
    if not isinstance(first, SharedLedger):
        pytest.skip("one process has one ledger")
    meters = meters_of(ledgers, requests_per_minute=20)

    async def ask() -> int:
        assert await admitted(first, [meters[0]]) is not None
        first.close()
        return sum([await admitted(second, [meters[1]]) is not None for _ in range(30)])

    assert asyncio.run(ask()) >= 19


def test_a_spare_slot_is_not_refused_while_the_store_is_asked() -> None:
    """A request that comes during an exchange asks in its turn."""
    settings = ReplicasConfig(store="redis://unused")
    asking: list[str] = []

    class Store:
        def exchange(self, claims: Sequence[Claim]) -> list[Standing]:
            if claims and ledger._shares["key k"].is_known:
                assert ledger._from_reserve([meter], [meter]) is None
                asking.append("asked")
            return [Standing(0.0, 0, 0.0, 2, 0) for _ in claims]

        def breakers(self, reports: Sequence[BreakerReport]) -> list[BreakerState]:
            return []

        def close(self) -> None:
            pass

    ledger = SharedLedger(Store(), settings)
    limits = LevelSettings(concurrent_requests=2)
    meter = ledger.meter("key k", "this key", limits, is_stored=False)
    assert ledger._from_reserve([meter], [meter]) is None
    ledger.exchange()
    assert ledger._from_reserve([meter], [meter]) is not None
    ledger.exchange()
    assert asking == ["asked"]
