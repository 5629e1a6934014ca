"""Scores are of what the screens read when they were recorded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from guard.config.schema import Config, load_config
from guard.plans.screens import TextPlans
from guard.policies.decisions import Decisions
from guard.policies.readings import same_since
from guard.policies.recorded import Recorded
from guard.policies.replay import replay
from guard.policies.store import VersionStore
from guard.policies.versions import Change
from tests.guard.tenants.conftest import Clock, opened

CONFIG = """
[[patterns]]
name = "secrets"
source = "secrets"

[[patterns]]
name = "personal-data"
source = "personal-data"

[policies.p]
guards = ["secrets"]
action = "block"

[policies.p.screen]
looks = { secrets = ["user"] }
"""
SHADOW = """
[policies.p.shadow]
guards = ["personal-data", "secrets"]

[policies.p.shadow.screen]
looks = { secrets = ["user"], personal-data = ["user", "response"] }
"""


@pytest.fixture
def versions(tmp_path: Path, clock: Clock) -> Iterator[VersionStore]:
    database = opened(str(tmp_path / "versions.sqlite"))
    yield VersionStore(database, clock)
    database.close()


def config_of(folder: Path, more: str = "") -> Config:
    (folder / "config.toml").write_text(CONFIG + more)
    return load_config(folder / "config.toml")


def put(store: VersionStore, **settings: object) -> None:
    store.append([Change("p", "put", {"guards": ["secrets"]} | settings, "")], store.revision())


def test_since_when_a_policy_reads_what_it_reads(
    versions: VersionStore, clock: Clock, tmp_path: Path
) -> None:
    policies = config_of(tmp_path).policies
    assert same_since(versions, policies, ["p", "q"]) == {"p": 0.0, "q": 0.0}
    same = {"looks": {"secrets": ["user"]}}
    put(versions, screen=same)
    assert same_since(versions, policies, ["p"]) == {"p": 0.0}
    clock.now += 10
    put(versions, screen={"turns": 3})
    clock.now += 10
    put(versions, screen=same)
    began = clock.now
    clock.now += 10
    put(versions, screen=same, action="flag")  # reads the same
    assert same_since(versions, policies, ["p"]) == {"p": began + 1.0}


def test_what_was_read_otherwise_then_is_not_decided_again(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    known = {"secrets": {"score": 1.0, "threshold": 1.0, "fired": True, "action": "block"}}
    requests = [
        Recorded("r", f"2026-11-30T16:00:0{second}.000Z", "", "", "p", "blocked", known, 1500.0)
        for second in (9, 5)
    ]
    assert requests[1].began == requests[0].began - 4
    decisions = Decisions(config, TextPlans(config))
    since = {"p": requests[1].began + 1}
    found = replay(requests, "p", decisions, decisions, show=9, since=since)
    assert (found.read, found.replayed, found.changed) == (2, 1, 0)
    assert "then" in next(iter(found.reasons))
    # nor is one whose time was erased
    (lost,) = [Recorded("r", "", "", "", "p", "blocked", known)]
    assert replay([lost], "p", decisions, decisions, show=9, since=since).replayed == 0


def test_a_shadow_reads_nothing_that_its_policy_does_not(tmp_path: Path) -> None:
    plan = TextPlans(config_of(tmp_path, SHADOW))["p"]
    places = {screen.name: screen.places for screen in plan.screens}
    assert places == {"secrets": {"user"}, "personal-data": {"user"}}
    assert not plan.answering and plan.watching == {"personal-data"}
