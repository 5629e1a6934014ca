"""The contract of a store: the same for SQLite and for PostgreSQL."""

from __future__ import annotations

import threading

import pytest
import sqlalchemy as sa

from guard.config.schema import Config
from guard.errors import AlreadyExists, GuardError, InvalidTenant, UnknownTenant
from guard.tenants import database as tables
from guard.tenants.facts import facts_of
from guard.tenants.levels import (
    LONGEST_LIFE_S,
    LONGEST_OVERLAP_S,
    Key,
    LevelSettings,
    Organisation,
    Team,
)
from guard.tenants.meters import Spent
from guard.tenants.secret import hash_key
from guard.tenants.store import TenantStore, UsageRow
from tests.guard.tenants.conftest import Clock, opened

NONE = LevelSettings()
HOSTILE = (
    "", "a/b", "../x", "a b", "'; drop table keys; --", 'a"b', "ä", "a\0b", "a\nb", "-a", ".",
    "x" * 64, "%", "a\u202eb", "${x}", "<b>",
)  # fmt: skip


@pytest.fixture
def team(store: TenantStore) -> Team:
    store.new_organisation("acme", NONE)
    return store.new_team("acme", "research", NONE)


def test_what_was_made_is_read_again(store: TenantStore, clock: Clock) -> None:
    limits = LevelSettings(policies=("a", "b"), required=("a",), tokens_per_month=5, verdict="none")
    organisation = store.new_organisation("acme", limits)
    assert organisation == Organisation("acme", limits, clock.now)
    team = store.new_team("acme", "research", LevelSettings(default_policy="b"))
    key, text = store.new_key(team.id, "laptop", NONE, expires=clock.now + 60)
    assert store.get("organisation", "acme") == organisation
    assert store.get("team", "acme/research") == team
    assert store.get("key", key.id) == key
    assert (key.hash, key.expires, key.role) == (hash_key(text), clock.now + 60, "tenant")


def test_no_key_is_stored(store: TenantStore, team: Team) -> None:
    key, text = store.new_key(team.id, "laptop", NONE)
    _, rotated = store.rotate(key.id, 60)
    with store.database.transaction() as connection:
        rows = "".join(
            str(tuple(row))
            for table in (tables.organisations, tables.teams, tables.keys, tables.usage)
            for row in connection.execute(sa.select(table))
        )
    for secret in (text, rotated):
        assert secret.rpartition("-")[2] not in rows and hash_key(secret) in rows
        # 256 bits of it
        assert len(secret.removeprefix(f"sk-guard-{key.id}-")) == 43


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_refused(store: TenantStore, team: Team, name: str) -> None:
    with pytest.raises(InvalidTenant):
        store.new_organisation(name, NONE)
    with pytest.raises(InvalidTenant):
        store.new_team("acme", name, NONE)
    with pytest.raises(InvalidTenant):
        store.new_key(team.id, name, NONE)
    for kind in ("organisation", "team", "key"):
        with pytest.raises(UnknownTenant):
            store.get(kind, name)


def test_names_are_there_once(store: TenantStore, team: Team) -> None:
    with pytest.raises(AlreadyExists):
        store.new_organisation("acme", NONE)
    with pytest.raises(AlreadyExists):
        store.new_team("acme", "research", NONE)
    store.new_organisation("Acme", NONE)


def test_levels_need_the_one_above(store: TenantStore, team: Team) -> None:
    with pytest.raises(UnknownTenant):
        store.new_team("globex", "research", NONE)
    with pytest.raises(UnknownTenant):
        store.new_key("acme/sales", "laptop", NONE)
    with pytest.raises(InvalidTenant):
        store.new_key(None, "laptop", NONE)
    with pytest.raises(InvalidTenant):
        store.new_key(team.id, "root", NONE, role="admin")
    store.revoke("organisation", "acme")
    with pytest.raises(UnknownTenant):
        store.new_key(team.id, "laptop", NONE)


def test_settings_change_one_by_one(store: TenantStore, team: Team) -> None:
    store.change("team", team.id, {"tokens_per_month": 10, "requests_per_minute": 5})
    changed = store.change("team", team.id, {"tokens_per_month": None, "embeddings": True})
    assert changed.settings == LevelSettings(requests_per_minute=5, embeddings=True)
    with pytest.raises(InvalidTenant):
        store.change("team", team.id, {"requests_per_minute": 0})
    assert store.get("team", team.id) == changed


def test_policies_are_those_of_the_configuration_and_of_the_level_above(
    store: TenantStore, team: Team
) -> None:
    config = Config.model_validate({"policies": {"a": {"guards": []}, "b": {"guards": []}}})
    store = TenantStore(store.database, config)
    with pytest.raises(InvalidTenant, match="'c'"):
        store.change("team", team.id, {"required": ["c"]})
    store.change("organisation", "acme", {"policies": ["a"], "default_policy": "none"})
    for changes in ({"policies": ["b"]}, {"default_policy": "b"}):
        with pytest.raises(InvalidTenant, match="level above"):
            store.change("team", team.id, changes)
    store.change("team", team.id, {"required": ["b"], "policies": ["a"]})


def test_a_key_is_rotated_with_an_overlap(store: TenantStore, team: Team, clock: Clock) -> None:
    made, text = store.new_key(team.id, "laptop", LevelSettings(tokens_per_month=5))
    rotated, new = store.rotate(made.id, 60)
    assert new != text and rotated.hash == hash_key(new)
    assert (rotated.previous_hash, rotated.previous_until) == (hash_key(text), clock.now + 60)
    assert rotated.settings == made.settings
    at_once, _ = store.rotate(made.id, 0)
    assert at_once.previous_hash is None
    store.revoke("key", made.id)
    with pytest.raises(UnknownTenant):
        store.rotate(made.id, 0)


def test_a_key_ends_at_a_time_that_can_be_told(
    store: TenantStore, team: Team, clock: Clock
) -> None:
    longest = clock.now + LONGEST_LIFE_S
    made, _ = store.new_key(team.id, "laptop", NONE, expires=longest)
    assert made.expires == longest
    for expires in (clock.now, longest + 1, 1e18, float("inf"), float("nan")):
        with pytest.raises(InvalidTenant):
            store.new_key(team.id, "laptop", NONE, expires=expires)
    for overlap_s in (-1, LONGEST_OVERLAP_S + 1, 1e18, float("nan")):
        with pytest.raises(InvalidTenant):
            store.rotate(made.id, overlap_s)
    assert store.get("key", made.id) == made
    facts_of(store, store.every("key"))


def test_an_expired_key_is_not_rotated(store: TenantStore, team: Team, clock: Clock) -> None:
    made, _ = store.new_key(team.id, "laptop", NONE, expires=clock.now + 60)
    clock.now += 60
    with pytest.raises(InvalidTenant, match="expired"):
        store.rotate(made.id, 0)


def test_lists_go_on_behind_an_id(store: TenantStore, team: Team) -> None:
    store.new_organisation("b", NONE)
    store.new_team("b", "t", NONE)
    made = sorted(store.new_key(team.id, f"k{number}", NONE)[0].id for number in range(5))
    store.new_key("b/t", "other", NONE)
    first = store.list("key", parent=team.id, limit=3)
    rest = store.list("key", parent=team.id, after=first[-1].id)
    assert [key.id for key in (*first, *rest)] == made
    assert [each.id for each in store.list("team", parent="acme")] == ["acme/research"]
    assert len(store.every("key")) == 6


def test_changes_are_read_once(store: TenantStore, team: Team) -> None:
    first = store.changes(0)
    assert {level.id for level in first.levels} == {"acme", "acme/research"}
    assert store.changes(first.revision).levels == ()
    key, _ = store.new_key(team.id, "laptop", NONE)
    store.revoke("organisation", "acme")
    second = store.changes(first.revision)
    assert {level.id for level in second.levels} == {"acme", key.id}
    assert all(isinstance(level, Organisation | Key) for level in second.levels)


def test_usage_of_several_servers_adds_up(store: TenantStore, database_url: str) -> None:
    other = TenantStore(opened(database_url), None)
    names = [(f"key {number}", "2026-11") for number in range(20)]

    def write(store: TenantStore, order: int) -> None:
        for _ in range(10):
            store.add_usage({name: Spent(1, 10) for name in names[::order]})

    threads = [threading.Thread(target=write, args=args) for args in ((store, 1), (other, -1))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    revision, rows = store.usage()
    assert set(rows) == {UsageRow(level, period, 20, 200) for level, period in names}
    assert store.usage(revision) == (revision, ())
    store.add_usage({("key 3", "2026-12"): Spent(1, 1)})
    assert store.usage(revision)[1] == [UsageRow("key 3", "2026-12", 1, 1)]
    assert store.usage_of(["key 3", "key x"], "2026-11")["key 3"].tokens == 200
    other.database.close()


def test_several_servers_make_the_tables_at_once(database_url: str) -> None:
    faults: list[BaseException] = []

    def open_one() -> None:
        try:
            opened(database_url).close()
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=open_one) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults


def test_tables_of_another_release_are_left_alone(database_url: str) -> None:
    database = opened(database_url)
    with database.transaction() as connection:
        connection.execute(sa.update(tables.state).values(version=99))
    database.close()
    with pytest.raises(GuardError, match="version 99"):
        opened(database_url)
