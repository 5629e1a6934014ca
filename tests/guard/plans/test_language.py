"""Policies resolved against a model: what rows carry, what refuses, and what verdicts say."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from guard.artifact import Artifact, ArtifactMeta
from guard.config.policy_schema import PolicyConfig
from guard.config.schema import Config, GuardConfig
from guard.plans.language import LanguagePlan, LanguagePlans, ServedModel
from guard.verdict import GuardVerdict
from steering.engines.transformers.engine import TransformersEngine
from steering.fingerprint import fingerprint
from steering.hidden.rows import Reading, RowGuard
from tests.steering.engines.driver import ids, serve, start
from tests.steering.tiny import LAYERS, WIDTH, prompt, tiny_model

SETTINGS: dict[str, Any] = {
    "sense_layers": [0, 1],
    "act_layers": [2],
    "schedule": [1.0, 0.5],
    "pool": 2,
    "rest": 2,
    "threshold": 0.25,
    "strength": 1.5,
    "recheck": 0.75,
}
REPORT = {"request_id": "r-1", "model": "tiny", "elapsed_ms": 12.34567}

Save = Callable[..., Path]


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model()


@pytest.fixture
def save(tmp_path: Path, model: Any) -> Save:
    """Save an artifact for the tiny model; keyword arguments replace its settings."""

    def save(name: str, *, width: int = WIDTH, fitted_on: str = "", **settings: Any) -> Path:
        rng = np.random.default_rng(0)
        meta = ArtifactMeta.model_validate(
            {
                "method": "steer",
                "concept": f"topic/{name}",
                "created": "2026-01-31",
                "model": {
                    "name": "tiny",
                    "architecture": "LlamaForCausalLM",
                    "fingerprint": fitted_on or fingerprint(model),
                    "layers": LAYERS,
                    "width": width,
                },
                "seams": ["hidden"],
                "settings": SETTINGS | settings,
            }
        )
        tensors = {
            "gates": rng.normal(size=(2, width)).astype("f4"),
            "directions": 10 * rng.normal(size=(1, width)).astype("f4"),
        }
        path = tmp_path / f"{name}.safetensors"
        Artifact(meta, tensors).save(path)
        return path

    return save


def plan_of(model: Any, guard: GuardConfig, **policy: Any) -> LanguagePlan:
    config = Config(guards=(guard,), policies={"p": PolicyConfig(guards=(guard.name,), **policy)})
    return LanguagePlans(config, model, name="tiny")["p"]


def test_policy_without_guards_carries_nothing(model: Any) -> None:
    plans = LanguagePlans(Config(), model, name="tiny")
    plan = plans["none"]
    assert plan.rows() == () and not plan.refuses and len(plans.bank) == 0
    assert plan.verdict({}, **REPORT).outcome == "pass"
    assert plans.usable == ("none",)


def test_unknown_policy_is_a_key_error(model: Any) -> None:
    with pytest.raises(KeyError, match="ghost"):
        LanguagePlans(Config(), model, name="tiny")["ghost"]


@pytest.mark.parametrize("action", ["steer", "block", "flag", "observe"])
def test_only_steering_acts(model: Any, save: Save, action: str) -> None:
    plan = plan_of(model, GuardConfig(name="g", artifact=save("g")), action=action)
    assert plan.rows() == (RowGuard("g", 0.25, 1.5, acts=action == "steer", recheck=0.75),)
    assert plan.action == action and not plan.refuses


@pytest.mark.parametrize("action", ["steer", "block", "flag"])
def test_a_guard_in_shadow_observes_while_others_act(model: Any, save: Save, action: str) -> None:
    guards = (
        GuardConfig(name="tried", artifact=save("tried"), shadow=True),
        GuardConfig(name="g", artifact=save("g")),
    )
    policies = {"p": PolicyConfig(guards=("tried", "g"), action=action)}  # type: ignore[arg-type]
    plan = LanguagePlans(Config(guards=guards, policies=policies), model, name="tiny")["p"]
    assert [row.acts for row in plan.rows()] == [False, action == "steer"]
    fired, silent = Reading(1.0, 0.25, 0, True), Reading(0.0, 0.25, None, True)
    tried = {"tried": fired, "g": silent}
    verdict = plan.verdict(tried, **REPORT)
    assert verdict.outcome == "pass" and not plan.blocks(tried)
    assert [(guard.fired, guard.action) for guard in verdict.guards] == [
        (True, "observe"),
        (False, "none"),
    ]
    both = {"tried": fired, "g": fired}
    assert [guard.action for guard in plan.verdict(both, **REPORT).guards] == ["observe", action]
    assert plan.blocks(both) == (action == "block")


def test_configured_values_go_before_fitted_ones(model: Any, save: Save) -> None:
    guard = GuardConfig(name="g", artifact=save("g"), threshold=-0.5, strength=3.0, recheck=False)
    assert plan_of(model, guard).rows() == (RowGuard("g", -0.5, 3.0, recheck=None),)
    zero = guard.model_copy(update={"threshold": 0.0, "recheck": True})
    assert plan_of(model, zero).rows() == (RowGuard("g", 0.0, 3.0, recheck=0.75),)


def test_guard_fitted_without_recheck_decides_on_the_prompt(model: Any, save: Save) -> None:
    guard = GuardConfig(name="g", artifact=save("g", recheck=None))
    assert plan_of(model, guard).rows()[0].recheck is None
    rechecking = guard.model_copy(update={"recheck": True})
    plan = plan_of(model, rechecking)
    assert plan.refuses and "without a threshold for generated tokens" in plan.broken["g"]


def test_policies_share_one_bank_in_their_own_order(model: Any, save: Save) -> None:
    guards = tuple(GuardConfig(name=n, artifact=save(n)) for n in ("a", "b", "c"))
    policies = {"one": PolicyConfig(guards=("c", "a")), "two": PolicyConfig(guards=("b",))}
    plans = LanguagePlans(Config(guards=guards, policies=policies), model, name="tiny")
    assert [row.name for row in plans["one"].rows()] == ["c", "a"]
    assert [row.name for row in plans["two"].rows()] == ["b"]
    assert list(plans.bank.index) == ["a", "b", "c"]
    assert plans.usable == ("none", "one", "two")


def broken(save: Save, tmp_path: Path, kind: str) -> Path:
    """An artifact that cannot be applied."""
    if kind == "missing":
        return tmp_path / "gone.safetensors"
    if kind == "damaged":
        path = save("damaged")
        content = bytearray(path.read_bytes())
        content[-5] ^= 1
        path.write_bytes(content)
        return path
    faults: dict[str, dict[str, Any]] = {
        "other model": {"fitted_on": "0" * 64},
        "deeper model": {"act_layers": [9]},
        "wider model": {"width": 2 * WIDTH},
        "unsound": {"threshold": "nan"},
        "incomplete": {"pool": None},
    }
    return save("broken", **faults[kind])


REASONS = {
    "missing": "does not exist",
    "damaged": "were altered",
    "other model": "was fitted on 'tiny'.*not on 'tiny'.*it has other weights; run `guard rebind",
    "deeper model": r"layers \[9\] do not exist in a model of 4 layers: fit the guard again",
    "wider model": "its width is 64, the model's 32: fit the guard again",
    "unsound": "must be a finite number",
    "incomplete": "pool must be a finite number",
}


@pytest.mark.parametrize("kind", REASONS)
def test_a_guard_that_does_not_fit_breaks_the_policies_that_name_it(
    model: Any, save: Save, tmp_path: Path, kind: str
) -> None:
    config = Config(
        guards=(
            GuardConfig(name="bad", artifact=broken(save, tmp_path, kind)),
            GuardConfig(name="good", artifact=save("good")),
        ),
        policies={
            "closed": PolicyConfig(guards=("bad", "good")),
            "open": PolicyConfig(guards=("bad", "good"), on_error="open"),
            "sound": PolicyConfig(guards=("good",)),
        },
    )
    plans = LanguagePlans(config, model, name="tiny")
    assert list(plans.bank.index) == ["good"]
    assert plans["closed"].refuses
    assert not plans["open"].refuses and not plans["sound"].refuses
    assert [row.name for row in plans["open"].rows()] == ["good"], "the other guards still act"
    assert plans.usable == ("none", "open", "sound")
    assert not plans["sound"].broken
    verdict = plans["closed"].verdict({}, **REPORT)
    assert verdict.outcome == "error"
    assert [entry.guard for entry in verdict.guards] == ["good", "bad"]
    reason = verdict.guards[1].error
    assert reason == plans["closed"].broken["bad"]
    assert re.search(REASONS[kind], reason)


def test_a_policy_that_names_no_known_guard_fails_closed(model: Any) -> None:
    """A configuration built in Python is not cross-checked: it must not pass unguarded."""
    config = Config(policies={"p": PolicyConfig(guards=("ghost",))})
    plan = LanguagePlans(config, model, name="tiny")["p"]
    assert plan.refuses and "no guard 'ghost'" in plan.broken["ghost"]


def test_guards_whose_layers_interleave_are_served_together(model: Any, save: Save) -> None:
    early = GuardConfig(name="early", artifact=save("early", act_layers=[1]))
    late = GuardConfig(name="late", artifact=save("late", sense_layers=[1, 2], act_layers=[3]))
    policies = {"p": PolicyConfig(guards=("early", "late"))}
    plans = LanguagePlans(Config(guards=(early, late), policies=policies), model, name="tiny")
    assert not plans["p"].refuses and sorted(plans.bank.decisions) == [1, 2]


@pytest.fixture
def plan(model: Any, save: Save) -> LanguagePlan:
    return plan_of(model, GuardConfig(name="g", artifact=save("g")))


FIRED = {"g": Reading(score=0.5, threshold=0.25, position=0, valid=True)}
QUIET = {"g": Reading(score=0.125, threshold=0.75, position=None, valid=True)}


def test_verdict_says_what_was_read(plan: LanguagePlan) -> None:
    verdict = plan.verdict(FIRED, **REPORT)
    assert (verdict.request_id, verdict.model, verdict.policy) == ("r-1", "tiny", "p")
    assert (verdict.outcome, verdict.elapsed_ms) == ("steered", 12.346)
    assert verdict.guards == (
        GuardVerdict("g", "topic/g", "steer", 0.5, 0.25, True, "steer", position=0, error=None),
    )
    assert json.loads(json.dumps(verdict.as_dict()))["guards"][0]["score"] == 0.5


def test_verdict_of_a_guard_that_did_not_fire(plan: LanguagePlan) -> None:
    verdict = plan.verdict(QUIET, **REPORT)
    assert verdict.outcome == "pass"
    assert verdict.guards[0] == GuardVerdict("g", "topic/g", "steer", 0.125, 0.75, False, "none")


@pytest.mark.parametrize(
    ("action", "outcome"),
    [("steer", "steered"), ("block", "blocked"), ("flag", "flagged"), ("observe", "pass")],
)
def test_outcome_follows_the_action(plan: LanguagePlan, action: Any, outcome: str) -> None:
    verdict = replace(plan, action=action).verdict(FIRED, **REPORT)
    assert (verdict.outcome, verdict.guards[0].action) == (outcome, action)
    assert replace(plan, action=action).verdict(QUIET, **REPORT).outcome == "pass"


def test_row_that_never_ran_has_no_score(plan: LanguagePlan) -> None:
    entry = plan.verdict({}, **REPORT).guards[0]
    assert (entry.score, entry.threshold, entry.fired, entry.error) == (None, 0.25, False, None)


@pytest.mark.parametrize("score", [math.nan, math.inf])
def test_non_finite_activations_are_an_error_and_no_number(
    plan: LanguagePlan, score: float
) -> None:
    readings = {"g": Reading(score=score, threshold=0.25, position=None, valid=False)}
    verdict = plan.verdict(readings, **REPORT)
    assert verdict.outcome == "error"
    assert verdict.guards[0].score is None
    assert "NaN" in (verdict.guards[0].error or "")
    json.dumps(verdict.as_dict(), allow_nan=False)


def test_plan_drives_the_engine_and_its_verdict_tells(model: Any, save: Save) -> None:
    path = save("g", recheck=None)
    config = Config(
        guards=(
            GuardConfig(name="loud", artifact=path, threshold=-1.0),
            GuardConfig(name="still", artifact=path, threshold=1e6),
        ),
        policies={n: PolicyConfig(guards=(n,)) for n in ("loud", "still")},
    )
    plans = LanguagePlans(config, model, name="tiny")
    engine = TransformersEngine(model, plans.bank, capacity=3)
    names = ("loud", "still", "none")
    rows, readings = serve(engine, [start(prompt(9, 0), plans[n].rows()) for n in names])
    engine.close()
    outcomes = [plans[n].verdict(r, **REPORT).outcome for n, r in zip(names, readings, strict=True)]
    assert outcomes == ["steered", "pass", "pass"]
    assert rows[1] == rows[2] and ids(rows)[0] != ids(rows)[2]


def test_a_quantised_copy_is_told_from_another_model() -> None:
    artifact = Artifact(
        ArtifactMeta.model_validate(
            {
                "method": "steer",
                "concept": "topic/any",
                "created": "2026-01-31",
                "model": {"name": "m", "architecture": "a", "fingerprint": "f", "layers": 4}
                | {"width": WIDTH},
                "seams": ["hidden"],
            }
        ),
        {},
    )
    quantised = ServedModel("0" * 64, LAYERS, WIDTH, "cpu", "fp8 when vLLM loads it")
    assert quantised.remedy(artifact, "hp.safetensors") == (
        "it is quantised (fp8 when vLLM loads it); run `guard rebind hp.safetensors --model ...` "
        "for it, or fit it on that model"
    )
    assert replace(quantised, depth=9).remedy(artifact, "x") == "fit it on that model"


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        ({"action": "say"}, 'the action "say"'),
        ({"actions": {"g": "say"}}, 'the action "say"'),
        ({"actions": {"g": "block"}}, "actions of single guards"),
        ({"rewind": True}, "rewind = true"),
        ({"scope": "turn"}, 'scope = "turn"'),
    ],
)
def test_policies_that_need_the_batching_engine_are_refused_elsewhere(
    model: Any, save: Save, policy: dict[str, Any], words: str
) -> None:
    plan = plan_of(model, GuardConfig(name="g", artifact=save("g")), **policy)
    assert not plan.refuses
    outside = plan.outside("vLLM")
    assert outside.refuses and words in outside.broken["g"] and outside.guards == ()


@pytest.mark.parametrize(
    ("policy", "rewinds"),
    [
        ({}, "steered"),
        ({"rewind": True}, "always"),
        ({"rewind": False}, "never"),
        ({"action": "flag"}, "never"),
        ({"action": "say", "message": "No.", "rewind": True}, "never"),
        ({"action": "block", "actions": {"g": "steer"}}, "steered"),
    ],
)
def test_which_answers_go_back(
    model: Any, save: Save, policy: dict[str, Any], rewinds: str
) -> None:
    guard = GuardConfig(name="g", artifact=save("g"))
    assert plan_of(model, guard, **policy).rewinds == rewinds
    shadow = guard.model_copy(update={"shadow": True})
    assert plan_of(model, shadow, **policy).rewinds == "never"
    on_the_prompt = guard.model_copy(update={"recheck": False})
    assert plan_of(model, on_the_prompt, **policy).rewinds == "never"


def test_policies_of_plain_keys_run_anywhere(model: Any, save: Save) -> None:
    plan = plan_of(model, GuardConfig(name="g", artifact=save("g")), action="block")
    assert plan.outside("vLLM") is plan


def test_an_answer_that_could_not_be_steered_says_the_message(model: Any, save: Save) -> None:
    guard = GuardConfig(name="g", artifact=save("g"))
    plan = plan_of(model, guard, rewind=True, message="Not here.")
    reading = Reading(0.9, 0.75, 3, True, rewinds=1, stuck=True)
    verdict = plan.verdict({"g": reading}, **REPORT)
    assert (verdict.outcome, verdict.guards[0].action, verdict.guards[0].steps) == (
        "said",
        "say",
        1,
    )
    assert plan.message == "Not here." and not plan.may_end
