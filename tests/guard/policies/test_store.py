"""The contract of a store of versions: the same for SQLite and for PostgreSQL."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from guard.config.policy_schema import LivePoliciesConfig
from guard.errors import DatabaseUnavailable, PolicyChanged, VersionNotFound
from guard.policies.store import VersionStore
from guard.policies.versions import Change
from guard.tenants.database import Database, url_in
from tests.guard.tenants.conftest import Clock, opened


@pytest.fixture
def versions(database_url: str, clock: Clock) -> Iterator[VersionStore]:
    database = opened(database_url)
    yield VersionStore(database, clock)
    database.close()


def put(policy: str, guard: str = "a", act: str = "put") -> Change:
    return Change(policy, act, {"guards": [guard]}, "admin", "why")  # type: ignore[arg-type]


def test_what_was_added_is_read_again(versions: VersionStore, clock: Clock) -> None:
    assert versions.revision() == 0 and versions.current() == {}
    one, two = versions.append([put("x", act="file"), put("y")], 0)
    clock.now += 5
    (three,) = versions.append([Change("x", "delete", None, "root", "")], 2)
    assert [each.number for each in (one, two, three)] == [1, 1, 2]
    assert [each.revision for each in (one, two, three)] == [1, 2, 3] and versions.revision() == 3
    assert versions.current() == {"y": two, "x": three}
    assert versions.of_file() == {"x": one}
    assert versions.version("x", 1) == one
    assert [*versions.versions("x", limit=5)] == [three, one]
    assert [*versions.versions("x", limit=5, before=2)] == [one]
    with pytest.raises(VersionNotFound):
        versions.version("x", 3)


def test_who_does_not_know_the_last_change_adds_nothing(versions: VersionStore) -> None:
    versions.append([put("x")], 0)
    with pytest.raises(PolicyChanged):
        versions.append([put("x", "b")], 0)
    assert versions.current()["x"].settings == {"guards": ["a"]}


def test_of_changes_at_the_same_time_one_is_made(versions: VersionStore, database_url: str) -> None:
    made: list[object] = []

    def change(store: VersionStore, guard: str) -> None:
        try:
            made.append(store.append([put("x", guard)], 0)[0])
        except (PolicyChanged, DatabaseUnavailable) as error:
            made.append(error)

    others = [VersionStore(opened(database_url)) for _ in range(4)]
    threads = [
        threading.Thread(target=change, args=(store, f"g{i}")) for i, store in enumerate(others)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    for store in others:
        store.database.close()
    assert sum(not isinstance(each, Exception) for each in made) == 1, made
    assert versions.revision() == 1


def test_a_database_that_does_not_answer_is_said(tmp_path: Path) -> None:
    url = url_in(LivePoliciesConfig(database=str(tmp_path / "versions.sqlite")), "live_policies")
    assert url is not None
    database = Database(url, "live_policies")
    store = VersionStore(database)
    database.close()
    (tmp_path / "versions.sqlite").write_bytes(b"no database" * 100)
    with pytest.raises(DatabaseUnavailable, match="live policies"):
        store.revision()
