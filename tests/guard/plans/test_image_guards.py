"""Guards of finished images in a configuration: which fit, decisions and verdicts."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from guard.artifact import Artifact
from guard.config.policy_schema import PolicyConfig
from guard.config.schema import Config, GuardConfig
from guard.plans.base import LoadedGuard
from guard.plans.image_guards import ImageGuards
from guard.plans.images import ImagePlan, ImagePlans
from steering.fingerprint import fingerprint
from steering.hidden.rows import RowGuard
from steering.images.embedding import ImageReading
from steering.methods import METHODS
from tests.guard.toy_images import (
    PAINTED,
    TOY_METHODS,
    WIDTH,
    ToyFamily,
    restack,
    save_latents,
    save_toy,
)

REPORT = {"request_id": "r-1", "model": "toy", "elapsed_ms": 1.0}
SHOWN = ImageReading(9.0, 0.5, True, resolved=False, position=8)
CLEAR = ImageReading(-9.0, 0.5, False, position=8)
NAN_SCORE = ImageReading(math.nan, 0.5, False, valid=False, position=8)
QUIET = ImageReading(0.25, 0.5, False)
REFINED = ImageReading(0.9, 0.5, True, steps=3, after=0.1)


@pytest.fixture(autouse=True)
def _toys(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, method in TOY_METHODS.items():
        monkeypatch.setitem(METHODS, name, method)
    yield


def config_of(folder: Path, *guards: str, **policy: Any) -> Config:
    """`look` reads images, `knife` reads prompts; a policy "p" of the named guards."""
    known = {
        "look": save_latents(folder / "look.safetensors"),
        "knife": save_toy(folder / "knife.safetensors"),
    }
    return Config(
        guards=tuple(GuardConfig(name=name, artifact=path) for name, path in known.items()),
        policies={"p": PolicyConfig(guards=guards or ("look", "knife"), **policy)},
    )


def plan_of(folder: Path, *guards: str, **policy: Any) -> ImagePlan:
    return ImagePlans(config_of(folder, *guards, **policy), ToyFamily(), name="toy")["p"]


def test_a_classifier_is_in_the_output_bank_only(tmp_path: Path) -> None:
    guards = ImageGuards(config_of(tmp_path), ToyFamily(), name="toy")
    assert guards.stacks.output.names == ("look",) and guards.stacks.prompts.names == ("knife",)
    assert guards.stacks.guidance == () and guards.selection.broken == {}
    loaded, _ = guards.selection.fit["look"]
    assert loaded == LoadedGuard(
        "look", "object/look", METHODS["latents"], 0.5, 1.0, digest=loaded.digest
    )
    assert guards.selection.fit["knife"][0].action == "refine"


def test_classifiers_are_stacked_and_read_latents(tmp_path: Path) -> None:
    config = Config(
        guards=tuple(
            GuardConfig(name=name, artifact=save_latents(tmp_path / f"{name}.safetensors"))
            for name in ("one", "two")
        )
    )
    family = ToyFamily()
    bank = ImageGuards(config, family, name="toy").stacks.output
    assert len(bank.stacks) == 1 and bank.names == ("one", "two")
    latents = family.latents(family.encode([f"a {PAINTED}", "a cat"]))
    readings = bank.read(latents, [[RowGuard("one", 0.5, 1.0), RowGuard("two", 99.0, 1.0)]] * 2)
    fired = [{name: reading.fired for name, reading in row.items()} for row in readings]
    assert fired == [{"one": True, "two": False}, {"one": False, "two": False}]


def test_a_threshold_is_the_configured_one_or_that_of_the_fit(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    look, knife = config.guards
    changed = (look.model_copy(update={"threshold": 0.75, "strength": 3.0}), knife)
    plans = ImagePlans(config.model_copy(update={"guards": changed}), ToyFamily(), name="toy")
    # a guard that blocks has no strength
    assert plans["p"].rows()[0] == RowGuard("look", 0.75, 1.0)
    # its fit need not have one either
    save_latents(tmp_path / "look.safetensors", threshold=0.25, strength="none")
    plans = ImagePlans(config, ToyFamily(), name="toy")
    assert plans["p"].rows()[0] == RowGuard("look", 0.25, 1.0)


# -- guards that do not fit ----------------------------------------------------------------------

FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "another autoencoder": ({"fitted_on": "0" * 64}, "was fitted on 'toy'.*not on 'toy'"),
    # latents are defined by the autoencoder, not by the encoders
    "the encoders": (
        {"fitted_on": fingerprint(torch.nn.ModuleDict(ToyFamily().encoders))},
        "was fitted on 'toy'.*not on 'toy'",
    ),
    "other channels": (
        {"channels": WIDTH + 1},
        f"guard look: takes latents of {WIDTH + 1} channels, the model's have {WIDTH}",
    ),
    "no threshold": ({"threshold": "nan"}, "threshold must be a finite number"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_classifier_that_does_not_fit_breaks_its_policies(tmp_path: Path, fault: str) -> None:
    changed, reason = FAULTS[fault]
    config = config_of(tmp_path)
    save_latents(tmp_path / "look.safetensors", **changed)
    opened = {"o": PolicyConfig(guards=("look", "knife"), on_error="open")}
    both = config.model_copy(update={"policies": {**config.policies, **opened}})
    plans = ImagePlans(both, ToyFamily(), name="toy")
    assert plans.stacks.output.names == () and plans.stacks.prompts.names == ("knife",)
    assert plans["p"].refuses and not plans["p"].unfit and plans.usable == ("none", "o")
    assert [row.name for row in plans["o"].rows()] == ["knife"] and not plans["o"].inspects_images
    assert re.search(reason, plans["p"].broken["look"])
    assert plans["p"].verdict({}, **REPORT).outcome == "error"


def test_another_autoencoder_leaves_the_guards_of_prompts_alone(tmp_path: Path) -> None:
    family = ToyFamily()
    family.autoencoder = torch.nn.Linear(WIDTH, WIDTH)
    config = config_of(tmp_path)
    apart = {name: PolicyConfig(guards=(name,)) for name in ("look", "knife")}
    plans = ImagePlans(config.model_copy(update={"policies": apart}), family, name="toy")
    assert plans["look"].refuses and not plans["knife"].refuses


def test_other_encoders_leave_the_guards_of_images_alone(tmp_path: Path) -> None:
    family = ToyFamily(seed=1)
    family.autoencoder = ToyFamily().autoencoder
    config = config_of(tmp_path)
    apart = {name: PolicyConfig(guards=(name,)) for name in ("look", "knife")}
    plans = ImagePlans(config.model_copy(update={"policies": apart}), family, name="toy")
    assert not plans["look"].refuses and plans["knife"].refuses


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    whole = Artifact.load(tmp_path / "look.safetensors")
    kept = {name: value for name, value in whole.tensors.items() if name != "bias1.latents"}
    unsigned = whole.meta.model_copy(update={"tensors_sha256": ""})
    Artifact(unsigned, kept).save(tmp_path / "look.safetensors")
    broken = ImagePlans(config, ToyFamily(), name="toy")["p"].broken["look"]
    assert "has no tensor 'bias1.latents': fit the guard again" in broken


def test_an_unknown_method_is_reported_with_the_known_ones(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    save_toy(tmp_path / "knife.safetensors", method="magic")
    broken = ImagePlans(config, ToyFamily(), name="toy")["p"].broken["knife"]
    known = broken.split("this release has ")[1]
    assert "unknown method 'magic'" in broken
    assert {"cgce", "safree", "latents"} <= {name.strip(" :") for name in re.split(r"[,:]", known)}


def test_classifiers_that_cannot_be_stacked_have_separate_stacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from steering.methods import latents

    def stack_single(guards: Any, device: Any) -> Any:
        if len(guards) > 1:
            raise ValueError("stacks a single guard only")
        return latents.stack(guards, device)

    restack(monkeypatch, "latents", stack_single)
    guards = tuple(
        GuardConfig(name=name, artifact=save_latents(tmp_path / f"{name}.safetensors"))
        for name in "ab"
    )
    fitting = ImageGuards(Config(guards=guards), ToyFamily(), name="toy")
    assert [stack.names for stack in fitting.stacks.output.stacks] == [("a",), ("b",)]


# -- decisions and verdicts --------------------------------------------------------------------


def test_a_plan_knows_the_guards_of_prompts_and_of_images(tmp_path: Path) -> None:
    both = plan_of(tmp_path)
    assert both.inspects_images and not both.acts_on_guidance
    assert [row.name for row in both.rows()] == ["look", "knife"]
    assert [row.name for row in both.prompt_rows()] == ["knife"]
    assert both.prompt_rows() == both.rows()[1:]
    of_prompts = plan_of(tmp_path, "knife")
    assert not of_prompts.inspects_images and of_prompts.prompt_rows() == of_prompts.rows()
    assert plan_of(tmp_path, "look").prompt_rows() == ()
    # also a guard that only observes
    assert plan_of(tmp_path, "look", action="observe").inspects_images


REPLACES = {"fallback": "replace", "replacement": "a banana"}


@pytest.mark.parametrize(
    ("policy", "reading", "decision", "done", "outcome"),
    [
        ({}, SHOWN, "block", "block", "blocked"),
        ({"action": "steer"}, SHOWN, "block", "block", "blocked"),
        ({"action": "block"}, SHOWN, "block", "block", "blocked"),
        (REPLACES, SHOWN, "replace", "replace", "refined"),
        # a policy that blocks has no replacement
        (REPLACES | {"action": "block"}, SHOWN, "block", "block", "blocked"),
        ({"action": "flag"}, SHOWN, "generate", "flag", "flagged"),
        ({"action": "observe"}, SHOWN, "generate", "observe", "pass"),
        ({}, CLEAR, "generate", "none", "pass"),
        ({}, NAN_SCORE, "fail", "none", "error"),
        ({"on_error": "open"}, NAN_SCORE, "generate", "none", "error"),
    ],
)
def test_the_fallback_decides_about_an_image(
    tmp_path: Path,
    policy: dict[str, Any],
    reading: ImageReading,
    decision: str,
    done: str,
    outcome: str,
) -> None:
    plan = plan_of(tmp_path, "look", **policy)
    assert plan.decide({"look": reading}) == decision
    verdict = plan.verdict({"look": reading}, **REPORT)
    (entry,) = verdict.guards
    assert (verdict.outcome, entry.action) == (outcome, done)
    assert entry.position == (8 if reading.fired else None)
    assert plan.last.decide({"look": reading}) == ("block" if decision == "replace" else decision)


def test_the_gravest_outcome_of_prompt_and_image_is_reported(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, **REPLACES)
    for knife, look, decision, outcome in (
        (QUIET, CLEAR, "generate", "pass"),
        (REFINED, CLEAR, "generate", "refined"),
        (REFINED, SHOWN, "replace", "refined"),
        (QUIET, NAN_SCORE, "fail", "error"),
    ):
        readings = {"knife": knife, "look": look}
        assert plan.decide(readings) == decision
        assert plan.verdict(readings, **REPORT).outcome == outcome
    # before the image is generated, its guard has no reading
    unread = plan.verdict({"knife": QUIET}, **REPORT).guards[0]
    assert (unread.guard, unread.score, unread.position, unread.error) == ("look", None, None, None)
