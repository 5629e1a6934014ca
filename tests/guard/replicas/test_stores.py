"""What every store keeps."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from guard.replicas.store import BreakerReport, Claim, ReplicaStore, StoreUnavailable
from tests.guard.replicas.stores import RunningRedis

NewStore = Callable[[], ReplicaStore]
REQUESTS = Claim("key k", requests_per_minute=60)
SLOTS = Claim("key k", concurrent=10)
QUIET = BreakerReport("upstream", 3, 60.0, False, False, 0, False)


def test_a_replica_gets_what_it_needs_and_reserves_a_share_of_half(new_store: NewStore) -> None:
    first, second = new_store(), new_store()
    second.exchange([])
    (standing,) = first.exchange([replace(REQUESTS, needed=1, wanted=100)])
    assert standing.granted == 60 // 4
    assert standing.requests_left == pytest.approx(45, abs=1)
    (standing,) = second.exchange([replace(REQUESTS, needed=30, wanted=30)])
    assert standing.granted == 30
    (standing,) = first.exchange([replace(REQUESTS, returned=15)])
    assert standing.requests_left == pytest.approx(30, abs=5) and standing.granted == 0
    (standing,) = second.exchange([replace(REQUESTS, needed=1000, wanted=1000)])
    assert 30 <= standing.granted <= 35


def test_a_bucket_fills_by_the_clock_of_the_store(new_store: NewStore) -> None:
    store = new_store()
    claim = Claim("key k", requests_per_minute=600, needed=600, wanted=600)
    assert store.exchange([claim])[0].granted == 600
    started = time.monotonic()
    time.sleep(0.5)
    (standing,) = store.exchange([replace(claim, needed=0, wanted=0)])
    passed = time.monotonic() - started
    assert 5 <= standing.requests_left <= 10 * passed + 1


def test_a_bucket_never_holds_more_than_a_minute(new_store: NewStore) -> None:
    store = new_store()
    assert store.exchange([replace(REQUESTS, returned=1000)])[0].requests_left == 60


def test_tokens_may_be_owed(new_store: NewStore) -> None:
    store = new_store()
    claim = Claim("team t", tokens_per_minute=60, tokens_spent=200)
    assert store.exchange([claim])[0].tokens_left == pytest.approx(-140, abs=1)
    left = new_store().exchange([replace(claim, tokens_spent=0)])[0].tokens_left
    assert left == pytest.approx(-140, abs=5)


def test_a_limit_that_is_new_later_begins_whole(new_store: NewStore) -> None:
    store = new_store()
    store.exchange([replace(REQUESTS, needed=60, wanted=60)])
    both = replace(REQUESTS, tokens_per_minute=500)
    assert store.exchange([both])[0].tokens_left == 500
    store.exchange([Claim("key k", tokens_per_minute=500)])
    assert store.exchange([both])[0].requests_left == 60


def test_slots_of_the_others_are_not_given(new_store: NewStore) -> None:
    first, second = new_store(), new_store()
    second.exchange([])
    (standing,) = first.exchange([replace(SLOTS, slots_needed=2, slots_wanted=10)])
    assert (standing.slots, standing.slots_free) == (2 + 8 // 4, 6)
    (standing,) = second.exchange([replace(SLOTS, slots_needed=9, slots_wanted=9)])
    assert (standing.slots, standing.slots_free) == (6, 0)
    first.exchange([replace(SLOTS, slots_needed=0, slots_wanted=0)])
    (standing,) = second.exchange([replace(SLOTS, slots_needed=9, slots_wanted=9)])
    assert standing.slots == 9


def test_a_replica_that_has_gone_holds_no_slots(new_store: NewStore) -> None:
    first, second = new_store(), new_store()
    first.exchange([replace(SLOTS, slots_needed=10, slots_wanted=10)])
    assert second.exchange([replace(SLOTS, slots_needed=1, slots_wanted=1)])[0].slots == 0
    first.close()
    assert second.exchange([replace(SLOTS, slots_needed=1, slots_wanted=1)])[0].slots == 1


def test_answers_come_in_the_order_of_the_claims(new_store: NewStore) -> None:
    names = ["z", "a", "m"]
    claims = [
        Claim(name, requests_per_minute=10 * index) for index, name in enumerate(names, start=1)
    ]
    assert [s.requests_left for s in new_store().exchange(claims)] == [10, 20, 30]


def test_failures_of_all_replicas_open_a_breaker(new_store: NewStore) -> None:
    first, second = new_store(), new_store()
    (state,) = first.breakers([replace(QUIET, failures=2)])
    assert (state.failures, state.is_open) == (2, False)
    (state,) = second.breakers([replace(QUIET, failures=1)])
    assert state.is_open and 55 < state.open_for_s <= 60
    (state,) = first.breakers([QUIET])
    assert state.is_open and state.failures == 3


def test_an_answer_closes_it_and_a_success_ends_the_row(new_store: NewStore) -> None:
    first, second = new_store(), new_store()
    first.breakers([replace(QUIET, failures=2, opened=True)])
    (state,) = second.breakers([replace(QUIET, answered=True)])
    assert (state.is_open, state.failures) == (False, 2)
    (state,) = second.breakers([replace(QUIET, answered=True, succeeded=True, failures=1)])
    assert (state.is_open, state.failures) == (False, 1)


def test_it_stays_open_until_a_request_has_tried(new_store: NewStore) -> None:
    store = new_store()
    short = replace(QUIET, cooldown_s=0.1)
    store.breakers([replace(short, opened=True)])
    time.sleep(0.2)
    (state,) = store.breakers([short])
    assert state.is_open and state.open_for_s == 0


def test_services_of_other_names_share_nothing(
    new_store: NewStore, settings: object, request: pytest.FixtureRequest
) -> None:
    from guard.config.replicas_schema import ReplicasConfig
    from guard.replicas.opening import store_of

    assert isinstance(settings, ReplicasConfig)
    other = store_of(settings.model_copy(update={"name": f"{settings.name}-b"}))
    request.addfinalizer(other.close)
    new_store().exchange([replace(REQUESTS, needed=60, wanted=60)])
    assert other.exchange([REQUESTS])[0].requests_left == 60


def test_what_has_expired_is_gone_from_redis(redis_server: RunningRedis) -> None:
    import redis

    from guard.replicas.redis import RedisStore

    store = RedisStore(redis_server.url, "expiring", 1.0)
    store.exchange([REQUESTS, replace(SLOTS, name="b", slots_needed=1, slots_wanted=1)])
    store.breakers([replace(QUIET, failures=1)])
    client = redis.Redis.from_url(redis_server.url)
    keys = client.keys("{expiring}:*")
    assert len(keys) == 4
    assert all(0 < client.ttl(key) <= 3661 for key in keys)
    client.close()
    store.close()


def test_one_that_is_not_there_is_an_error_without_the_password() -> None:
    pytest.importorskip("redis")
    from guard.replicas.postgresql import PostgresStore
    from guard.replicas.redis import RedisStore

    for store in (
        RedisStore("redis://:secret@127.0.0.1:1/0", "none", 0.2),
        PostgresStore("postgresql://u:secret@127.0.0.1:1/none", "none", 0.2),
    ):
        with pytest.raises(StoreUnavailable) as error:
            store.exchange([])
        assert "secret" not in str(error.value)
