"""Policies resolved to screens of text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from guard.artifact import Artifact, ArtifactMeta
from guard.config.policy_schema import PLACES
from guard.config.schema import load_config
from guard.errors import ConfigError, GuardFailed
from guard.plans.screens import TextPlans
from server.screening.findings import ScreenedText
from steering.methods import METHODS
from steering.methods.fitted import FittedGuard

LIST = '[[words]]\nlabel = "BAD"\nwords = ["forbidden"]\n'
BASE = """
[[patterns]]
name = "mine"
source = "mine.toml"
[[patterns]]
name = "secrets"
source = "secrets"
[policies.p]
guards = ["mine", "secrets"]
"""


def _plans(folder: Path, text: str) -> TextPlans:
    (folder / "mine.toml").write_text(LIST)
    (folder / "config.toml").write_text(text)
    return TextPlans(load_config(folder / "config.toml"))


def _faults(folder: Path, text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        _plans(folder, text)
    return [problem.partition(": ")[2] for problem in caught.value.problems]


def test_actions_come_from_the_screen_then_the_policy(tmp_path: Path) -> None:
    text = BASE + 'action = "redact"\n[policies.p.screen]\nactions = { mine = "flag" }\n'
    plans = _plans(tmp_path, text)
    plan = plans["p"]
    assert [(screen.name, screen.action) for screen in plan.screens] == [
        ("mine", "flag"),
        ("secrets", "redact"),
    ]
    assert plan.changes and plan.active
    assert not plans["none"].active
    assert {screen.action for screen in plans.screens} == {"observe"}


def test_policies_that_change_share_their_lists(tmp_path: Path) -> None:
    """A set of lists takes time to make, and megabytes once it has read texts."""
    plans = _plans(tmp_path, BASE + '[policies.q]\nguards = ["mine"]\n')
    (tmp_path / "changed.toml").write_text(BASE + 'action = "flag"\n')
    changed = plans.under(load_config(tmp_path / "changed.toml"))
    joined = changed["p"].answering_patterns
    assert joined is not None and joined is plans["p"].answering_patterns
    (mine,) = plans["q"].screens
    assert plans["q"].answering_patterns is mine.patterns


def test_an_action_of_models_guards_blocks_where_a_screen_fires(tmp_path: Path) -> None:
    plan = _plans(tmp_path, BASE + 'action = "steer"\n')["p"]
    assert {screen.action for screen in plan.screens} == {"block"}


def test_unscreened_paths_and_kinds_pass_unread(tmp_path: Path) -> None:
    table = '[policies.p.screen]\nunscreened = ["/v1/files*", "/x", "images"]\n'
    plan = _plans(tmp_path, BASE + table)["p"]
    assert plan.passes("/v1/files/1") and plan.passes("/x") and plan.passes("pictures")
    assert not plan.passes("/x/y") and not plan.passes("audio")


@pytest.mark.parametrize(
    ("addition", "fault"),
    [
        ('action = "route"', "policies.p.action: needs a destination"),
        ('action = "policy"', "policies.p.action: needs a policy"),
        (
            'action = "redact"\n[policies.p.screen]\nrace = true',
            'policies.p.screen.race: "redact" changes the request',
        ),
        (
            "[policies.p.screen]\nrestore = true",
            'policies.p.screen.restore: is for the action "red',
        ),
        ('[policies.p.screen]\nactions = { x = "flag" }', "policies.p.screen.actions.x: is no gua"),
        ('[policies.p.screen]\nlooks = { x = ["user"] }', "policies.p.screen.looks.x: is no guard"),
        ("[policies.p.screen]\nlooks = { mine = [] }", "policies.p.screen.looks.mine: "),
        (
            'action = "route"\n[policies.p.screen]\nmodel = "m"\nlook = ["response"]',
            'policies.p.action: "route" is too late',
        ),
        ('[policies.p.screen]\nlooks = { mine = ["moon"] }', "policies.p.screen.looks.mine[0]: "),
        ('[policies.p.screen]\nupstream = "x"', "policies.p.screen.upstream: no upstream"),
        ('[[patterns]]\nname = "mine"\nsource = "secrets"', "patterns[2].name: is the same as in"),
        ('[[patterns]]\nname = "b"\nsource = "b.toml"', "patterns[2].source: "),
        ('[[upstreams]]\nname = "u"\nurl = "http://u:secret@x"', "upstreams[0].url: should be"),
    ],
)
def test_faults_of_screens(tmp_path: Path, addition: str, fault: str) -> None:
    faults = _faults(tmp_path, BASE + addition)
    assert any(message.startswith(fault) for message in faults), faults
    assert "secret@" not in str(faults)


class _Words:
    vocabulary, width = 24, 4


class _Encoder:
    def __init__(self, name: str) -> None:
        self.name = name

    fingerprint = "f" * 64
    words = _Words()


def _save(
    path: Path,
    settings: dict[str, Any],
    method: str = "screen",
    tensors: Mapping[str, Any] = {},  # noqa: B006
) -> None:
    fitted = {"kind": "logistic", "calibration": "temperature", "temperature": 1.0} | settings
    meta = ArtifactMeta.model_validate(
        {
            "method": method,
            "concept": "text/x",
            "created": "2026-01-31",
            "model": {
                "name": "minilm",
                "architecture": "bert",
                "fingerprint": _Encoder.fingerprint,
                "layers": 1,
                "width": 4,
            },
            "seams": ["text"],
            "settings": fitted,
        }
    )
    head = {"weight": np.zeros((1, 4), "f4"), "bias": np.zeros(1, "f4")}
    Artifact(meta, head | dict(tensors)).save(path)


def _guards(folder: Path, *names: str, setting: str = "", policy: str = "") -> TextPlans:
    """A policy with the saved artifacts of these names."""
    path = folder / "config.toml"
    tables = (f'[[guards]]\nname = "{n}"\nartifact = "{n}.safetensors"\n{setting}\n' for n in names)
    listed = ", ".join(f'"{name}"' for name in names)
    path.write_text("".join(tables) + f"[policies.p]\nguards = [{listed}]\n{policy}")
    return TextPlans(load_config(path), _Encoder)  # type: ignore[arg-type]


def _head(folder: Path, settings: dict[str, Any]) -> TextPlans:
    _save(folder / "h.safetensors", settings)
    return _guards(folder, "h")


def test_a_lower_threshold_than_the_fitted_one_has_no_first_stage(tmp_path: Path) -> None:
    stage = {name: np.zeros(4, "f4") for name in ("first_weight", "first_mean")}
    tensors = stage | {"first_bias": np.full(1, -1, "f4"), "first_known": np.ones(1, "f4")}
    _save(tmp_path / "h.safetensors", {"threshold": 0.5, "first_stage_cut": 0.0}, tensors=tensors)
    static = np.ones((1, 4), np.float32)
    for threshold, clears in (("", True), ("threshold = 0.6", True), ("threshold = 0.4", False)):
        cascade = _guards(tmp_path, "h", setting=threshold).cascade
        first = None if cascade is None else cascade.first
        cleared = first is not None and bool(first.cleared(first.estimates(static, [[]]), (0,))[0])
        assert cleared == clears, threshold


def test_a_policy_may_have_every_text_encoded(tmp_path: Path) -> None:
    _save(tmp_path / "h.safetensors", {"threshold": 0.5})
    for text, clears in (("", True), ("[policies.p.screen]\nfirst_stage = false\n", False)):
        plans = _guards(tmp_path, "h", policy=text)
        assert plans["p"].screens[0].first_stage == clears
        assert not plans.screens[0].first_stage, "moderations tell scores"


class _Norms:
    """A method of another package: scores are half the norm of the embedding."""

    def __init__(self, guards: Sequence[FittedGuard], _device: Any) -> None:
        self.count = len(guards)

    def scores(self, embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
        norms = np.linalg.norm(embeddings, axis=1, keepdims=True) / 2
        return np.repeat(norms.astype(np.float32), self.count, axis=1)


def test_screens_of_two_methods_are_scored_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = replace(METHODS["screen"], name="norm", stack=_Norms)
    monkeypatch.setitem(METHODS, "norm", entry)
    for name, method in (("a", "screen"), ("b", "norm"), ("c", "screen")):
        _save(tmp_path / f"{name}.safetensors", {"threshold": 0.5}, method)
    plans = _guards(tmp_path, "a", "b", "c")
    assert plans.cascade is not None
    (scores,) = plans.cascade.heads.scores(np.asarray([[2.0, 0, 0, 0]], np.float32))
    columns = {screen.name: screen.head for screen in plans["p"].screens}
    assert {name: scores[column] for name, column in columns.items()} == {
        "a": 0.5,
        "b": 1,
        "c": 0.5,
    }
    # what knows nothing of sentences says nothing of one
    (whole, alone) = plans.cascade.heads.scores(
        np.asarray([[2.0, 0, 0, 0]] * 2, np.float32), np.asarray([False, True])
    )
    assert (whole[columns["b"]], alone[columns["b"]]) == (1, 0)


def test_a_screen_of_an_unknown_method_breaks_its_policies(tmp_path: Path) -> None:
    _save(tmp_path / "h.safetensors", {"threshold": 0.5}, "oracle")
    with pytest.raises(GuardFailed, match="unknown method 'oracle'"):
        _guards(tmp_path, "h")["p"].require_whole()


def test_a_classifier_in_shadow_observes(tmp_path: Path) -> None:
    _head(tmp_path, {"threshold": 0.5})
    path = tmp_path / "config.toml"
    path.write_text(path.read_text().replace("[[guards]]", "[[guards]]\nshadow = true"))
    config = load_config(path)
    assert [guard.shadow for guard in config.guards] == [True]
    (screen,) = TextPlans(config, _Encoder)["p"].screens  # type: ignore[arg-type]
    assert screen.action == "observe"


def test_a_classifier_fires_above_its_threshold_and_not_at_it(tmp_path: Path) -> None:
    (screen,) = _head(tmp_path, {"threshold": 0.5})["p"].screens
    assert not ScreenedText(screen, 0.5).fired
    assert ScreenedText(screen, 0.5001).fired


def test_a_policy_decides_where_a_classifier_reads_before_its_artifact_does(
    tmp_path: Path,
) -> None:
    plans = _head(tmp_path, {"threshold": 0.5, "look": ["user", "tool"]})
    assert plans["p"].screens[0].places == {"user", "tool"}
    path = tmp_path / "config.toml"
    policy = path.read_text() + "[policies.p.screen]\n"
    for line in ('look = ["response"]', 'look = ["user"]\nlooks = { h = ["response"] }'):
        path.write_text(policy + line)
        (screen,) = TextPlans(load_config(path), _Encoder)["p"].screens  # type: ignore[arg-type]
        assert screen.places == {"response"}
    assert _head(tmp_path, {"threshold": 0.5})["p"].screens[0].places == {*PLACES}


@pytest.mark.parametrize("look", [[], ["moon"], ["user", "moon"], "user", 3])
def test_a_classifier_for_unknown_places_breaks_its_policies(tmp_path: Path, look: object) -> None:
    with pytest.raises(GuardFailed, match="its places must be of system, user"):
        _head(tmp_path, {"threshold": 0.5, "look": look})["p"].require_whole()


@pytest.mark.parametrize("settings", [{}, {"threshold": None}])
def test_a_classifier_without_a_threshold_breaks_its_policies(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    with pytest.raises(GuardFailed, match="threshold must be a number"):
        _head(tmp_path, settings)["p"].require_whole()


def test_a_missing_list_breaks_the_policies_that_name_it(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(LIST)
    path = tmp_path / "config.toml"
    path.write_text(BASE + '[policies.open]\nguards = ["mine"]\non_error = "open"\n')
    config = load_config(path)
    (tmp_path / "mine.toml").unlink()
    plans = TextPlans(config)
    with pytest.raises(GuardFailed, match="cannot be read"):
        plans["p"].require_whole()
    plans["open"].require_whole()
    assert plans["open"].active


def test_unreadable_text_is_a_screen_of_its_own(tmp_path: Path) -> None:
    text = """
[[patterns]]
name = "encoded"
source = "unreadable"
[policies.p]
guards = ["encoded"]
action = "flag"
"""
    (screen,) = _plans(tmp_path, text)["p"].screens
    assert (screen.action, screen.patterns, screen.head) == ("flag", None, None)
    hidden = "jkf tdpt qjvh fokzdijnfi wsx qhfef vd kzwrf jv id vhwv sdtdxl sdvjrfi"
    (match,) = screen.find(f"Please read {hidden}")
    assert match.label == "UNREADABLE" and match.end - match.start > len(hidden) // 2
    assert screen.find("Please read this letter to me, and answer it.") == []
