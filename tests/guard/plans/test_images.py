"""Policies resolved against an image model: the guards of rows, decisions and verdicts."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from guard.config.policy_schema import PolicyConfig
from guard.config.schema import Config, GuardConfig
from guard.errors import PolicyUnfit
from guard.plans.images import ImagePlan, ImagePlans
from guard.plans.language import LanguagePlans
from guard.verdict import GuardVerdict
from steering.hidden.rows import RowGuard
from steering.images.embedding import ImageReading
from steering.methods import METHODS
from tests.guard.conftest import MakeArtifact
from tests.guard.toy_images import TOKENS, TOY_METHODS, WIDTH, ToyFamily, restack, save_toy
from tests.steering.tiny import tiny_model

REPORT = {"request_id": "r-1", "model": "toy", "elapsed_ms": 12.34567}
QUIET = ImageReading(0.25, 0.5, False)
REFINED = ImageReading(0.9, 0.5, True, steps=3, after=0.1)
STUCK = ImageReading(0.9, 0.5, True, steps=3, after=0.8, resolved=False)
CUT_OFF = ImageReading(0.9, 0.5, True)
NAN_SCORE = ImageReading(math.nan, 0.5, False, valid=False)


@pytest.fixture(autouse=True)
def _toys(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, method in TOY_METHODS.items():
        monkeypatch.setitem(METHODS, name, method)
    yield


def config_of(tmp_path: Path, **policy: Any) -> Config:
    guard = GuardConfig(name="g", artifact=save_toy(tmp_path / "knife.safetensors"))
    return Config(guards=(guard,), policies={"p": PolicyConfig(guards=("g",), **policy)})


def plan_of(tmp_path: Path, **policy: Any) -> ImagePlan:
    return ImagePlans(config_of(tmp_path, **policy), ToyFamily(), name="toy")["p"]


def replacing(**policy: Any) -> dict[str, Any]:
    return {"fallback": "replace", "replacement": "a banana"} | policy


def test_policy_without_guards_carries_nothing() -> None:
    plans = ImagePlans(Config(), ToyFamily(), name="toy")
    plan = plans["none"]
    assert plan.rows() == () and not plan.refuses and not plan.unfit and not plan.acts_on_guidance
    assert plans.stacks.prompts.stacks == () and plans.stacks.guidance == ()
    assert plan.decide({}) == "generate" and plan.verdict({}, **REPORT).outcome == "pass"
    with pytest.raises(KeyError, match="ghost"):
        plans["ghost"]


@pytest.mark.parametrize("action", ["steer", "refine", "overlay", "block", "flag", "observe"])
def test_all_acting_policies_use_the_methods_action(tmp_path: Path, action: str) -> None:
    plan = plan_of(tmp_path, action=action)
    assert plan.rows() == (RowGuard("g", 0.5, 1.0, acts=action in {"steer", "refine", "overlay"}),)


def test_configured_values_go_before_fitted_ones(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    (guard,) = config.guards
    changed = guard.model_copy(update={"threshold": 0.75, "strength": 2.0})
    plans = ImagePlans(config.model_copy(update={"guards": (changed,)}), ToyFamily(), name="toy")
    assert plans["p"].rows() == (RowGuard("g", 0.75, 2.0),)


@pytest.mark.parametrize(
    ("action", "reading", "decision", "done", "outcome"),
    [
        ("refine", QUIET, "generate", "none", "pass"),
        ("refine", REFINED, "generate", "refine", "refined"),
        ("steer", REFINED, "generate", "refine", "refined"),
        ("overlay", REFINED, "generate", "refine", "refined"),
        ("refine", STUCK, "block", "block", "blocked"),
        ("refine", CUT_OFF, "generate", "none", "pass"),
        ("block", CUT_OFF, "block", "block", "blocked"),
        ("flag", CUT_OFF, "generate", "flag", "flagged"),
        ("observe", CUT_OFF, "generate", "observe", "pass"),
        ("block", QUIET, "generate", "none", "pass"),
        ("refine", NAN_SCORE, "fail", "none", "error"),
    ],
)
def test_the_decision_and_the_verdict_on_a_reading(
    tmp_path: Path, action: str, reading: ImageReading, decision: str, done: str, outcome: str
) -> None:
    plan = plan_of(tmp_path, action=action)
    assert plan.decide({"g": reading}) == decision
    verdict = plan.verdict({"g": reading}, **REPORT)
    assert (verdict.outcome, verdict.guards[0].action) == (outcome, done)
    assert verdict.guards[0].fired == reading.fired


@pytest.mark.parametrize("action", ["refine", "block"])
@pytest.mark.parametrize("reading", [REFINED, STUCK, CUT_OFF])
def test_a_guard_in_shadow_only_observes(
    tmp_path: Path, action: str, reading: ImageReading
) -> None:
    config = config_of(tmp_path, action=action)
    (guard,) = config.guards
    shadowed = config.model_copy(update={"guards": (guard.model_copy(update={"shadow": True}),)})
    plan = ImagePlans(shadowed, ToyFamily(), name="toy")["p"]
    assert not plan.rows()[0].acts and plan.decide({"g": reading}) == "generate"
    verdict = plan.verdict({"g": reading}, **REPORT)
    assert (verdict.outcome, verdict.guards[0].action) == ("pass", "observe")


def test_the_verdict_on_a_refinement(tmp_path: Path) -> None:
    verdict = plan_of(tmp_path).verdict({"g": REFINED}, **REPORT)
    assert verdict.guards == (
        GuardVerdict(
            "g", "object/knife", "toy", 0.9, 0.5, True, "refine", position=0, steps=3, after=0.1
        ),
    )
    wire = json.loads(json.dumps(verdict.as_dict()))
    assert wire["outcome"] == "refined"
    assert (wire["guards"][0]["steps"], wire["guards"][0]["after"]) == (3, 0.1)


def test_a_row_without_readings_has_no_score(tmp_path: Path) -> None:
    entry = plan_of(tmp_path).verdict({}, **REPORT).guards[0]
    assert (entry.score, entry.threshold, entry.fired, entry.error) == (None, 0.5, False, None)


def test_a_refinement_that_fails_is_replaced_once_where_the_policy_says_so(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, **replacing())
    assert plan.decide({"g": STUCK}) == "replace" and plan.replacement == "a banana"
    verdict = plan.verdict({"g": STUCK}, **REPORT)
    assert (verdict.outcome, verdict.guards[0].action) == ("refined", "replace")
    assert plan.decide({"g": REFINED}) == "generate"
    assert plan.last.decide({"g": STUCK}) == "block"


def test_without_a_replacement_the_fallback_blocks(tmp_path: Path) -> None:
    """A configuration built in Python is not cross-checked."""
    assert plan_of(tmp_path, fallback="replace").decide({"g": STUCK}) == "block"


def test_nan_passes_where_the_policy_fails_open_and_is_reported(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, on_error="open")
    assert plan.decide({"g": NAN_SCORE}) == "generate"
    verdict = plan.verdict({"g": NAN_SCORE}, **REPORT)
    assert verdict.outcome == "error" and verdict.guards[0].score is None
    assert "NaN" in (verdict.guards[0].error or "")
    json.dumps(verdict.as_dict(), allow_nan=False)


def test_guidance_guards_steer_and_are_stacked_by_their_seam(tmp_path: Path) -> None:
    path = save_toy(tmp_path / "g.safetensors", method="toy-guide", seams=["guidance"])
    config = config_of(tmp_path)
    both = Config(
        guards=(*config.guards, GuardConfig(name="h", artifact=path)),
        policies={
            "both": PolicyConfig(guards=("g", "h")),
            "observe": PolicyConfig(guards=("h",), action="observe"),
        },
    )
    plans = ImagePlans(both, ToyFamily(), name="toy")
    assert plans.stacks.prompts.names == ("g", "h")
    assert [list(stack.names) for stack in plans.stacks.guidance] == [["h"]]
    assert plans["both"].acts_on_guidance and not plans["observe"].acts_on_guidance
    verdict = plans["both"].verdict({"g": QUIET, "h": CUT_OFF}, **REPORT)
    assert (verdict.outcome, verdict.guards[1].action) == ("steered", "steer")
    gravest = plans["both"].verdict({"g": REFINED, "h": CUT_OFF}, **REPORT)
    assert gravest.outcome == "refined"


# -- guards that do not fit ---------------------------------------------------------------------


def broken(tmp_path: Path, kind: str) -> Path:
    path = tmp_path / "broken.safetensors"
    if kind == "missing":
        return path
    faults: dict[str, dict[str, Any]] = {
        "other encoder": {"fitted_on": "0" * 64},
        "other stream": {"streams": ["t5"], "tensors": {"weights.t5": np.ones(WIDTH, "f4")}},
        "other width": {"tensors": {"weights.text": np.ones(WIDTH + 1, "f4")}},
        "other shape": {
            "method": "toy-guide",
            "tensors": {
                "weights.text": np.ones(WIDTH, "f4"),
                "concept.text": np.ones((TOKENS + 1, WIDTH), "f4"),
            },
        },
        "cannot act": {"method": "toy-stiff"},
        "unsound": {"threshold": "nan"},
        "refused by its method": {"tensors": {"weights.text": np.zeros(WIDTH, "f4")}},
        "unknown method": {"method": "magic"},
    }
    return save_toy(path, **faults[kind])


REASONS = {
    "missing": "does not exist",
    "other encoder": "was fitted on 'toy'.*not on 'toy'",
    "other stream": "fit the guard again",
    "other width": "does not fit the output of the model's encoders",
    "other shape": "not of the shape of the model's stream 'text'",
    "cannot act": r"output of the model's encoders \(shapes differ\): fit the guard again",
    "unsound": "threshold must be a finite number",
    "refused by its method": "weights are all zero: fit the guard again",
    "unknown method": "unknown method 'magic': this release has",
}


@pytest.mark.parametrize("kind", REASONS)
def test_a_guard_that_does_not_fit_breaks_the_policies_that_name_it(
    tmp_path: Path, kind: str
) -> None:
    config = Config(
        guards=(
            GuardConfig(name="bad", artifact=broken(tmp_path, kind)),
            GuardConfig(name="good", artifact=save_toy(tmp_path / "good.safetensors")),
        ),
        policies={
            "closed": PolicyConfig(guards=("bad", "good")),
            "open": PolicyConfig(guards=("bad", "good"), on_error="open"),
            "sound": PolicyConfig(guards=("good",)),
        },
    )
    plans = ImagePlans(config, ToyFamily(), name="toy")
    assert plans.stacks.prompts.names == ("good",)
    assert plans["closed"].refuses and not plans["closed"].unfit
    assert [row.name for row in plans["open"].rows()] == ["good"], "the other guards still act"
    assert plans.usable == ("none", "open", "sound")
    verdict = plans["closed"].verdict({}, **REPORT)
    assert verdict.outcome == "error"
    assert re.search(REASONS[kind], verdict.guards[1].error or "")


def test_guards_that_cannot_be_stacked_have_separate_stacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stack_single(guards: Any, device: Any) -> Any:
        if len(guards) > 1:
            raise ValueError("stacks a single guard only")
        return TOY_METHODS["toy"].stacked(guards, device)

    restack(monkeypatch, "toy", stack_single)
    guards = tuple(
        GuardConfig(name=name, artifact=save_toy(tmp_path / f"{name}.safetensors")) for name in "ab"
    )
    policies = {"p": PolicyConfig(guards=("a", "b"))}
    plans = ImagePlans(Config(guards=guards, policies=policies), ToyFamily(), name="toy")
    assert [stack.names for stack in plans.stacks.prompts.stacks] == [["a"], ["b"]]
    assert not plans["p"].refuses and len(plans["p"].rows()) == 2


# -- policies for models of both kinds ----------------------------------------------------------


def mixed(tmp_path: Path, language: Path) -> Config:
    return Config(
        guards=(
            GuardConfig(name="words", artifact=language),
            GuardConfig(name="knife", artifact=save_toy(tmp_path / "knife.safetensors")),
        ),
        policies={
            "words": PolicyConfig(guards=("words",)),
            "knife": PolicyConfig(guards=("knife",)),
            "both": PolicyConfig(guards=("words", "knife")),
            "empty": PolicyConfig(),
        },
    )


def test_a_policy_applies_to_a_model_with_the_guards_of_its_kind(
    tmp_path: Path, make_artifact: MakeArtifact
) -> None:
    path = tmp_path / "words.safetensors"
    make_artifact().save(path)
    plans = ImagePlans(mixed(tmp_path, path), ToyFamily(), name="toy")
    assert [row.name for row in plans["both"].rows()] == ["knife"]
    assert not plans["both"].refuses, "guards of another kind are not broken here"
    assert plans["words"].unfit and not plans["words"].refuses
    assert not plans["empty"].unfit
    assert plans.usable == ("none", "knife", "both", "empty")
    plans["both"].require_fit("toy")
    with pytest.raises(PolicyUnfit, match="no guard of the policy 'words' is for a model like"):
        plans["words"].require_fit("toy")


def test_a_policy_for_images_does_not_leave_a_language_model_unguarded(
    tmp_path: Path, make_artifact: MakeArtifact
) -> None:
    path = tmp_path / "words.safetensors"
    make_artifact().save(path)
    plans = LanguagePlans(mixed(tmp_path, path), tiny_model(), name="tiny")
    assert plans["knife"].unfit and plans["both"].refuses, "words was fitted on another model"
    with pytest.raises(PolicyUnfit):
        plans["knife"].require_fit("tiny")
    assert plans.usable == ("none", "empty")


def test_a_guard_of_no_known_kind_fails_closed_everywhere(tmp_path: Path) -> None:
    path = save_toy(tmp_path / "odd.safetensors", seams=["aura"], method="magic")
    config = Config(
        guards=(GuardConfig(name="odd", artifact=path),),
        policies={"p": PolicyConfig(guards=("odd",))},
    )
    assert ImagePlans(config, ToyFamily(), name="toy")["p"].refuses
    assert LanguagePlans(config, tiny_model(), name="tiny")["p"].refuses


def test_readings_of_a_real_bank_make_the_verdict(tmp_path: Path) -> None:
    family = ToyFamily()
    plans = ImagePlans(config_of(tmp_path, **replacing()), family, name="toy")
    prompts = ["a K", "a cat", "an S", "a cat, far away: K", "~"]
    guards = [plans["p"].rows()] * len(prompts)
    readings = plans.stacks.prompts.apply(
        family.encode(prompts), guards, family.overflow(prompts)
    ).readings
    decided = [plans["p"].decide(row) for row in readings]
    assert decided == ["generate", "generate", "replace", "generate", "fail"]
    outcomes = [plans["p"].verdict(row, **REPORT).outcome for row in readings]
    assert outcomes == ["refined", "pass", "refined", "pass", "error"]
    blocks = replace(plans["p"], action="block")
    assert [blocks.decide(row) for row in readings] == [
        "block",
        "generate",
        "block",
        "block",
        "fail",
    ]
