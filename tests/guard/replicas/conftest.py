from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator

import pytest

from guard.config.replicas_schema import ReplicasConfig
from guard.replicas.limits import SharedLedger
from guard.replicas.opening import store_of
from guard.replicas.store import ReplicaStore
from guard.tenants.meters import Ledger
from tests.guard.replicas.stores import RunningRedis, running_redis
from tests.guard.tenants.databases import running_postgres


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RunningRedis]:
    with running_redis() as server:
        yield server


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    with running_postgres() as url:
        yield url.render_as_string()


def url_of(kind: str, request: pytest.FixtureRequest) -> str:
    if kind == "redis":
        server: RunningRedis = request.getfixturevalue("redis_server")
        return server.url
    url: str = request.getfixturevalue("postgres_url")
    return url


def patient(settings: ReplicasConfig) -> ReplicasConfig:
    """More patience than a configuration may have: a busy machine must not look like a store that
    is down."""
    return settings.model_copy(update={"timeout_s": 10.0, "offline_s": 60.0})


@pytest.fixture(params=["redis", "postgresql"])
def settings(request: pytest.FixtureRequest) -> ReplicasConfig:
    """The settings of a service of its own in each kind of store."""
    name = f"test-{uuid.uuid4().hex}"
    return patient(ReplicasConfig(store=url_of(request.param, request), name=name))


@pytest.fixture
def new_store(settings: ReplicasConfig) -> Iterator[Callable[[], ReplicaStore]]:
    """Makes the store of one more replica."""
    made: list[ReplicaStore] = []

    def make() -> ReplicaStore:
        made.append(store_of(settings))
        return made[-1]

    yield make
    for store in made:
        store.close()


@pytest.fixture(params=["in process", "redis", "postgresql"])
def ledgers(request: pytest.FixtureRequest) -> Iterator[tuple[Ledger, Ledger]]:
    """The ledgers of two replicas; in one process both are the same."""
    if request.param == "in process":
        ledger = Ledger()
        yield ledger, ledger
        return
    url, name = url_of(request.param, request), f"test-{uuid.uuid4().hex}"
    settings = patient(ReplicasConfig(store=url, name=name))
    stores = [store_of(settings) for _ in range(2)]
    shared = [SharedLedger(store, settings) for store in stores]
    for each in shared:
        each.exchange()
        each.open()
    yield shared[0], shared[1]
    for ledger_, store in zip(shared, stores, strict=True):
        ledger_.close()
        store.close()
