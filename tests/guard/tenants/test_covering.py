from __future__ import annotations

from typing import Any

import pytest

from guard.config.schema import Config
from guard.errors import GuardFailed
from guard.tenants.covering import at_least, covers
from guard.tenants.inheritance import inherited
from guard.tenants.levels import LevelSettings

FLOOR: dict[str, Any] = {
    "guards": ["a"],
    "action": "redact",
    "screen": {"look": ["user", "response"], "turns": 2, "first_stage": True},
}
MORE: list[dict[str, Any]] = [
    {},
    {"guards": ["b", "a"]},
    {"action": "block"},
    {"screen": {"actions": {"a": "block"}}, "action": "redact"},
    {"message": "No."},
    {"screen": {"look": ["user", "response", "system"]}},
    {"screen": {"turns": 4}},
    {"screen": {"first_stage": False}},
    {"shadow": {"guards": ["b"], "action": "observe"}},
]
LESS: list[dict[str, Any]] = [
    {"guards": ["b"]},
    {"guards": []},
    {"action": "observe"},
    {"action": "flag"},
    {"action": "route"},
    {"screen": {"actions": {"a": "observe"}}},
    {"on_error": "open"},
    {"scope": "turn"},
    {"debug": True},
    {"fallback": "replace"},
    {"screen": {"look": ["user"]}},
    {"screen": {"looks": {"a": ["user"]}}},
    {"screen": {"turns": 1}},
    {"screen": {"hold_back_chars": 20}},
    {"screen": {"hold_back_ms": 10.0}},
    {"screen": {"race": True}},
    {"screen": {"restore": True}},
    {"screen": {"unscreened": ["/v1/files*"]}},
    # which threshold is the lower one is not known without the artifact
    {"thresholds": {"a": 0.5}},
]


def configured(**policies: dict[str, Any]) -> Config:
    return Config.model_validate({"policies": policies})


def changed(change: dict[str, Any]) -> dict[str, Any]:
    return {**FLOOR, **change, "screen": FLOOR["screen"] | change.get("screen", {})}


def test_a_lower_threshold_covers_a_higher_one() -> None:
    low, high = ({**FLOOR, "thresholds": {"a": threshold}} for threshold in (0.4, 0.6))
    config = configured(low=low, high=high)
    assert covers(config, "low", "high")
    assert not covers(config, "high", "low")


@pytest.mark.parametrize("change", MORE, ids=str)
def test_a_policy_that_does_more_covers(change: dict[str, Any]) -> None:
    assert covers(configured(floor=FLOOR, other=changed(change)), "other", "floor")


@pytest.mark.parametrize("change", LESS, ids=str)
def test_a_policy_that_does_less_does_not_cover(change: dict[str, Any]) -> None:
    config = configured(floor=FLOOR, other=changed(change))
    assert not covers(config, "other", "floor")
    assert not covers(config, "none", "floor") and covers(config, "floor", "none")


def test_the_policy_of_a_request_does_what_every_level_requires() -> None:
    one, both = {"guards": ["a"]}, {"guards": ["a", "b"]}
    config = configured(one=one, two={"guards": ["b"]}, both=both)
    assert at_least(config, "none", ("one",)) == "one"
    assert at_least(config, "both", ("one", "two")) == "both"
    assert at_least(config, "none", ("one", "both", "two")) == "both"
    for policy, required in (("none", ("one", "two")), ("one", ("missing",))):
        with pytest.raises(GuardFailed):
            at_least(config, policy, required)


def test_a_level_below_takes_nothing_away() -> None:
    above = LevelSettings(
        default_policy="strict", policies=("a", "b"), required=("r",), embeddings=False,
        verdict="outcome",
    )  # fmt: skip
    below = LevelSettings(
        default_policy="open", policies=("b", "open"), required=("q",), embeddings=True,
        verdict="full",
    )  # fmt: skip
    whole = inherited([above, below])
    assert (whole.default_policy, whole.policies) == ("strict", ("b",))
    assert whole.required == ("q", "r")
    assert whole.embeddings is False and whole.verdict == "outcome"
    # what the team has left out does not come back at the key
    assert inherited([above, below, LevelSettings(policies=("a",))]).policies == ()


def test_a_level_may_choose_among_what_it_is_offered() -> None:
    above = LevelSettings(default_policy="strict", policies=("a", "b"))
    whole = inherited([above, LevelSettings(default_policy="a", verdict="none")])
    assert (whole.default_policy, whole.policies, whole.verdict) == ("a", ("a", "b"), "none")
    assert inherited([LevelSettings(), LevelSettings(policies=("x",))]).policies == ("x",)
