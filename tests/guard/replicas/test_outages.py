"""A store that is down, hangs or comes back."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import pytest

from guard.config.replicas_schema import ReplicasConfig
from guard.errors import GuardError, LimitsUnavailable, TooManyRequests
from guard.replicas.limits import SharedLedger, _pause_s
from guard.replicas.opening import open_replicas
from guard.replicas.store import REPLICA_LIFE_S
from guard.tenants.levels import LevelSettings
from guard.tenants.meters import Meter
from tests.guard.replicas.stores import RunningRedis, running_redis

PATIENCE_S = 30.0


@pytest.fixture
def server() -> Iterator[RunningRedis]:
    with running_redis() as server:
        yield server


@contextmanager
def shared(
    server: RunningRedis, unavailable: Literal["refuse", "local"]
) -> Iterator[tuple[SharedLedger, Meter]]:
    """The ledger of one replica, and a level of 100 requests a minute."""
    settings = ReplicasConfig(
        store=server.url, timeout_s=0.2, offline_s=2, sync_s=0.05, unavailable=unavailable
    )
    with open_replicas(settings) as replicas:
        assert replicas is not None
        ledger = replicas.ledger
        limits = LevelSettings(requests_per_minute=100)
        yield ledger, ledger.meter("key k", "this key", limits, is_stored=False)


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not await holds():
        assert time.monotonic() < end
        await asyncio.sleep(0.05)


async def is_refused(ledger: SharedLedger, meter: Meter) -> bool:
    try:
        (await ledger.admit([meter])).close()
    except LimitsUnavailable:
        return True
    return False


def test_requests_are_refused_while_it_is_down_and_taken_again(
    server: RunningRedis, caplog: pytest.LogCaptureFixture
) -> None:
    with shared(server, "refuse") as (ledger, meter):

        async def ask() -> None:
            free = ledger.meter("key free", "this key", LevelSettings(), is_stored=False)
            assert not await is_refused(ledger, meter)
            server.stop()
            await until(lambda: is_refused(ledger, meter))
            assert not ledger.is_up and ledger.failures > 0 and ledger.unshared["refused"] > 0
            # a key without limits has nothing to count
            (await ledger.admit([free])).close()
            server.start()

            async def is_taken() -> bool:
                return not await is_refused(ledger, meter)

            await until(is_taken)
            assert ledger.is_up

        with caplog.at_level(logging.ERROR):
            asyncio.run(ask())
    told = [record.getMessage() for record in caplog.records]
    assert sum("limits are not shared" in line for line in told) == 1
    assert sum("limits are shared again" in line for line in told) == 1


def test_each_replica_counts_alone_where_it_may(server: RunningRedis) -> None:
    with shared(server, "local") as (ledger, meter):

        async def ask() -> None:
            assert not await is_refused(ledger, meter)
            server.stop()

            async def is_alone() -> bool:
                await is_refused(ledger, meter)
                return ledger.unshared["local"] > 0

            await until(is_alone)

            async def is_over() -> bool:
                try:
                    await ledger.admit([meter])
                except TooManyRequests:
                    return True
                return False

            await until(is_over)
            assert ledger.unshared["refused"] == 0

        asyncio.run(ask())


def test_a_store_that_hangs_holds_nobody_up_for_long(server: RunningRedis) -> None:
    with shared(server, "refuse") as (ledger, meter):

        async def ask() -> None:
            assert not await is_refused(ledger, meter)
            os.kill(server.pid, signal.SIGSTOP)
            try:
                await until(lambda: is_refused(ledger, meter))
            finally:
                os.kill(server.pid, signal.SIGCONT)

        asyncio.run(ask())


def test_a_slow_store_is_asked_before_the_others_take_this_server_for_dead() -> None:
    settings = ReplicasConfig.model_fields
    (longest,) = [m.le for m in settings["timeout_s"].metadata if hasattr(m, "le")]
    (offline,) = [m.le for m in settings["offline_s"].metadata if hasattr(m, "le")]
    for took_s in (0.0, 0.5, longest, 2 * longest):
        # it is counted when an exchange begins, at worst, and again when the next one ends
        assert took_s / 2 + _pause_s(0.1, took_s) + longest < REPLICA_LIFE_S
    assert _pause_s(0.1, 0.001) == 0.1 and _pause_s(0.1, 0.1) == pytest.approx(0.4)
    assert offline < REPLICA_LIFE_S, "its slots are given to others by then"


def test_a_store_that_is_down_at_the_start_is_told() -> None:
    settings = ReplicasConfig(store="redis://127.0.0.1:1/0", timeout_s=0.2)
    with pytest.raises(GuardError, match="does not answer"), open_replicas(settings):
        pass
    alone = settings.model_copy(update={"unavailable": "local"})
    with open_replicas(alone) as replicas:
        assert replicas is not None and not replicas.ledger.is_up


@pytest.mark.parametrize(
    "url",
    [
        "redis://u:secret@[bad/0",
        "mysql://u:secret@host/db",
        # characters of a password that stand for something else in a URL
        "postgresql://u:%secret@host/db",
        "postgresql://u:p@secret@host/db",
        "postgresql://u:secret/p@host/db",
        "",
    ],
)
def test_a_url_that_is_none_is_not_shown(
    url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("GUARD_REPLICAS", url)
    settings = ReplicasConfig(store_env="GUARD_REPLICAS")
    with pytest.raises(GuardError) as error, open_replicas(settings):
        pass
    assert "secret" not in str(error.value) + caplog.text
    assert "URL" in str(error.value), "what is wrong is the URL, not the store"
