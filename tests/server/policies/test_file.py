"""Policies of the configuration file, edited while a proxy runs."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import pytest

from guard.config.schema import load_config
from guard.errors import GuardError
from guard.policies.effective import PolicyFile
from guard.policies.store import VersionStore, store_of
from guard.policies.versions import Change, Version
from server.policies.live import LiveConfiguration
from server.policies.service import LivePolicies
from tests.server.policies.stand import administered, until, write_config


def edit(folder: Path, before: str, after: str) -> None:
    path = folder / "config.toml"
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))


def test_an_edited_file_is_followed(tmp_path: Path) -> None:
    with administered(tmp_path) as admin:
        edit(tmp_path, 'guards = ["words"]', 'guards = ["names"]')
        until(lambda: admin.said("Tom") == "blocked", "the edit")
        version = admin.ask("GET", "strict").json()
        assert (version["version"], version["act"], version["by"]) == (2, "file", "file")
        # what is changed last is in force, wherever that was
        admin.put("strict", {"guards": ["words"], "action": "flag"})
        assert admin.said("forbidden") == "flagged"
        edit(tmp_path, 'action = "block"', 'action = "observe"')
        until(lambda: admin.ask("GET", "strict").json()["version"] == 4, "the second edit")
        assert admin.said("Tom") == "pass"


def test_a_file_with_a_fault_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    more = '[policies.people]\nguards = ["names"]\naction = "block"\n'
    with administered(tmp_path, more=more) as admin, caplog.at_level(logging.ERROR):
        edit(tmp_path, '[policies.people]\nguards = ["names"]', "[policies.people]\nguards = [1]")
        until(lambda: "policies.people.guards[0]" in caplog.text, "the refusal")
        metrics = admin.proxy.metrics.render().decode()
        assert 'inference_guard_policy_refusals_total{source="file"} 1.0' in metrics
        edit(tmp_path, "guards = [1]", 'guards = ["names"]')
        # nor does one in which anything else has changed
        edit(tmp_path, 'default_policy = "strict"', 'default_policy = "people"')
        until(lambda: "[server]: has changed too" in caplog.text, "the second refusal")
        assert admin.said("forbidden") == "blocked"
        assert admin.ask("GET", "people").json()["version"] == 1


def test_what_was_edited_meanwhile_is_in_force_at_the_start(tmp_path: Path) -> None:
    with administered(tmp_path) as admin:
        admin.put("strict", {"guards": ["names"], "action": "block"})
    path = tmp_path / "versions.sqlite"
    assert path.stat().st_mode & 0o077 == 0  # settings may say what nobody should know
    with administered(
        tmp_path, '[policies.strict]\nguards = ["words", "names"]\naction = "flag"\n'
    ) as admin:
        assert [admin.said(text) for text in ("forbidden", "Tom")] == ["flagged", "flagged"]
        assert admin.ask("GET", "strict").json()["version"] == 3


class OvertakenStore(VersionStore):
    """Another server is always a little quicker to add the same."""

    def append(self, changes: Sequence[Change], after: int) -> Sequence[Version]:
        super().append(changes, after)
        return super().append(changes, after)


def test_servers_that_start_together_share_the_first_versions(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(write_config(tmp_path))
    config = load_config(path)
    live, store = LiveConfiguration(config), OvertakenStore(store_of(config).database)
    LivePolicies(live, store, PolicyFile(path)).open()
    assert store.revision() == 1 and "strict" in live.config.policies


def test_a_database_that_does_not_go_with_the_file_is_said(tmp_path: Path) -> None:
    with administered(tmp_path) as admin:
        admin.put("people", {"guards": ["names"]})
    path = tmp_path / "config.toml"
    path.write_text(path.read_text().replace('name = "names"', 'name = "others"'))
    config = load_config(path)
    policies = LivePolicies(LiveConfiguration(config), store_of(config), PolicyFile(path))
    with pytest.raises(GuardError, match=r"do not go with .*policies.people.guards\[0\]"):
        policies.open()


def test_a_policy_taken_out_of_the_file_is_removed(tmp_path: Path) -> None:
    more = '[policies.people]\nguards = ["names"]\naction = "block"\n'
    with administered(tmp_path, more=more) as admin:
        assert admin.said("Tom", guard={"policy": "people"}) == "blocked"
        edit(tmp_path, more, "")
        until(lambda: admin.ask("GET", "people").status_code == 404, "the removal")
        assert admin.ask("GET", "people/versions").json()["data"][0]["settings"] is None
