from __future__ import annotations

import hmac
import time
from datetime import UTC, datetime, timedelta

import pytest

from guard.errors import BudgetExhausted, TenantsUnavailable, TooManyRequests, Unauthorized
from guard.tenants.directory import Directory
from guard.tenants.keys import KeyRing
from guard.tenants.levels import LevelSettings
from guard.tenants.meters import Ledger
from guard.tenants.secret import hash_key
from guard.tenants.store import TenantStore
from tests.guard.tenants.conftest import Clock, opened

NONE = LevelSettings()


@pytest.fixture
def directory(store: TenantStore, clock: Clock) -> Directory:
    store.new_organisation("acme", NONE)
    store.new_team("acme", "research", NONE)
    return Directory(store, ledger=Ledger(clock), clock=clock, wall=clock)


def made(directory: Directory, **settings: object) -> str:
    """A key of the team, which the directory knows."""
    _, text = directory.store.new_key(
        "acme/research", "laptop", LevelSettings.model_validate(settings)
    )
    directory.refresh()
    return text


def test_a_key_has_the_settings_of_all_levels(directory: Directory) -> None:
    text = made(directory, required=("c",), verdict="full")
    directory.store.change("organisation", "acme", {"required": ["a"], "verdict": "outcome"})
    directory.store.change("team", "acme/research", {"required": ["b"], "default_policy": "b"})
    directory.refresh()
    principal = directory.find(text)
    assert principal is not None
    assert principal.required == ("c", "b", "a")
    assert (principal.default_policy, principal.verdict) == ("b", "outcome")
    assert (principal.tenant, principal.role) == ("acme/research", "tenant")


def test_only_the_key_is_taken(directory: Directory) -> None:
    text = made(directory)
    head, secret = text[:-43], text[-43:]
    wrong = ("A" if secret[0] != "A" else "B") + secret[1:]
    for other in (head + wrong, text + "A", text.upper(), "sk-guard-0123456789abcdef-" + secret):
        assert directory.find(other) is None
    assert directory.find(text) is not None


def test_hashes_are_compared_in_constant_time(
    directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = made(directory)
    compared: list[bytes] = []

    def compare(known: bytes, given: bytes) -> bool:
        compared.append(given)
        return known == given

    monkeypatch.setattr(hmac, "compare_digest", compare)
    unknown = "sk-guard-0123456789abcdef-" + text[-43:]
    for secret in (text, text[:-1] + "x", unknown):
        compared.clear()
        directory.find(secret)
        # both hashes of the key, whether it is known or not
        assert compared == [hash_key(secret).encode()] * 2


def test_a_key_ends(directory: Directory, clock: Clock) -> None:
    _, text = directory.store.new_key("acme/research", "short", NONE, expires=clock.now + 60)
    directory.refresh()
    assert directory.find(text) is not None
    clock.now += 60
    with pytest.raises(Unauthorized, match="expired"):
        directory.find(text)


def test_the_old_key_is_taken_during_the_overlap(directory: Directory, clock: Clock) -> None:
    old = made(directory)
    key = directory.store.every("key")[0]
    _, new = directory.store.rotate(key.id, 60)
    directory.refresh()
    assert directory.find(old) is directory.find(new) is not None
    clock.now += 60
    assert directory.find(new) is not None
    with pytest.raises(Unauthorized, match="replaced"):
        directory.find(old)
    directory.store.rotate(key.id, 0)
    directory.refresh()
    assert directory.find(new) is None


@pytest.mark.parametrize("kind", ["organisation", "team", "key"])
def test_what_is_revoked_takes_its_keys_along(directory: Directory, kind: str) -> None:
    text = made(directory)
    ids = {"organisation": "acme", "team": "acme/research"}
    directory.store.revoke(kind, ids.get(kind) or directory.store.every("key")[0].id)  # type: ignore[arg-type]
    directory.refresh()
    with pytest.raises(Unauthorized, match="revoked"):
        directory.find(text)


@pytest.mark.parametrize("level", ["organisation", "team", "key"])
def test_the_limits_of_every_level_hold(directory: Directory, level: str) -> None:
    text, other = made(directory), made(directory)
    identity = {"organisation": "acme", "team": "acme/research"}.get(level) or text[9:25]
    directory.store.change(level, identity, {"requests_per_minute": 2})  # type: ignore[arg-type]
    directory.refresh()
    ring = KeyRing([], directory)
    first, second = directory.find(text), directory.find(other)
    assert first is not None and second is not None
    ring.take(first)
    ring.take(first)
    with pytest.raises(TooManyRequests):
        ring.take(first)
    if level == "key":
        ring.take(second)
    else:
        with pytest.raises(TooManyRequests, match="acme"):
            ring.take(second)


def test_a_refused_request_costs_nothing(directory: Directory) -> None:
    text = made(directory, requests_per_minute=5)
    directory.store.change("organisation", "acme", {"concurrent_requests": 1})
    directory.refresh()
    ring = KeyRing([], directory)
    principal = directory.find(text)
    assert principal is not None
    lease = ring.take(principal)
    for _ in range(10):
        with pytest.raises(TooManyRequests, match="at the same time"):
            ring.take(principal)
    lease.close()
    lease.close()
    requests, _ = ring.rate_limits(principal)
    assert requests is not None and requests.remaining == 4
    ring.take(principal)


def test_tokens_of_a_minute_come_back(directory: Directory, clock: Clock) -> None:
    text = made(directory, tokens_per_minute=60)
    ring = KeyRing([], directory)
    principal = directory.find(text)
    assert principal is not None
    ring.take(principal).spend(90)
    with pytest.raises(TooManyRequests) as error:
        ring.take(principal)
    assert error.value.retry_after == pytest.approx(31)
    clock.now += error.value.retry_after
    ring.take(principal)


def test_a_budget_outlives_a_restart_and_is_one_for_all_servers(
    directory: Directory, database_url: str
) -> None:
    text = made(directory, tokens_per_month=100)

    def server() -> tuple[Directory, KeyRing]:
        found = Directory(TenantStore(opened(database_url), None))
        found.refresh()
        return found, KeyRing([], found)

    (one, ring), (other, other_ring) = server(), server()
    principal = one.find(text)
    assert principal is not None
    ring.take(principal).spend(60)
    ring.take(principal).spend(40)
    with pytest.raises(BudgetExhausted) as error:
        ring.take(principal)
    assert error.value.retry_after > 0
    theirs = other.find(text)
    assert theirs is not None
    other_ring.take(theirs)
    one.refresh()
    other.refresh()
    restarted, its_ring = server()
    for found, taking in ((other, other_ring), (restarted, its_ring)):
        again = found.find(text)
        assert again is not None
        with pytest.raises(BudgetExhausted):
            taking.take(again)


def test_a_server_whose_clock_is_ahead_spends_the_next_month() -> None:
    now = [datetime(2026, 11, 30, 23, 59, 59, tzinfo=UTC)]
    ledger = Ledger(now=lambda: now[0])
    meter = ledger.meter("team a/b", "the team", LevelSettings(tokens_per_month=10))
    ledger.set_stored({("team a/b", "2026-10"): 10, ("team a/b", "2026-11"): 9})
    ledger.set_stored({("team a/b", "2026-12"): 10})
    ledger.take([meter])
    now[0] += timedelta(seconds=1)
    with pytest.raises(BudgetExhausted):
        ledger.take([meter])


def test_a_key_whose_team_is_missing_is_not_taken(directory: Directory) -> None:
    text = made(directory)
    directory._snapshot.teams.clear()
    with pytest.raises(KeyError):
        directory.find(text)


def test_usage_that_cannot_be_written_is_written_later(
    directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = made(directory, tokens_per_month=100)
    principal = directory.find(text)
    assert principal is not None
    lease = KeyRing([], directory).take(principal)
    lease.spend(30)
    add_usage = directory.store.add_usage
    monkeypatch.setattr(directory.store, "add_usage", _unavailable)
    for _ in range(3):
        with pytest.raises(TenantsUnavailable):
            directory.refresh()
    lease.spend(20)
    monkeypatch.setattr(directory.store, "add_usage", add_usage)
    directory.refresh()
    tokens = {row.level: row.tokens for row in directory.store.usage()[1]}
    assert tokens == dict.fromkeys(tokens, 50) and len(tokens) == 3


def _unavailable(*_: object) -> None:
    raise TenantsUnavailable("down")


def test_what_was_read_holds_for_a_while_and_then_nobody_is_known(
    store: TenantStore, clock: Clock, directory: Directory
) -> None:
    text = made(directory)
    clock.now += 60
    assert directory.find(text) is not None
    clock.now += 1
    with pytest.raises(TenantsUnavailable):
        directory.find(text)
    directory.refresh()
    assert directory.find(text) is not None


def test_changes_are_in_force_within_a_second(store: TenantStore, database_url: str) -> None:
    store.new_organisation("acme", NONE)
    store.new_team("acme", "research", NONE)
    directory = Directory(TenantStore(opened(database_url), None), refresh_s=0.2)
    directory.open()
    try:
        _, text = store.new_key("acme/research", "laptop", NONE)
        end = time.monotonic() + 5
        while directory.find(text) is None:
            assert time.monotonic() < end
            time.sleep(0.02)
    finally:
        directory.close()
