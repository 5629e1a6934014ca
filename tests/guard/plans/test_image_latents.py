"""Guards that write to the latents during generation: which fit a model, decisions and verdicts."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import guard
from guard.config.policy_schema import PolicyConfig
from guard.config.schema import Config, GuardConfig
from guard.plans.base import LoadedGuard
from guard.plans.images import ImagePlan, ImagePlans
from steering.engines.diffusion.families import Family
from steering.images.embedding import ImageReading
from steering.methods import METHODS
from tests.server.tiny_pipeline import SIDE, save_eraser, save_guards, save_pipeline, save_screen

REPORT = {"request_id": "r-1", "model": "tiny", "elapsed_ms": 1.0}
SILENT = ImageReading(-1.0, 0.0, False)
OBSERVED = ImageReading(2.0, 0.0, True, resolved=False, position=3)
PERTURBED = ImageReading(2.0, 0.0, True, steps=2, after=-1.0, position=3, area=0.25, peak=4.0)
STUBBORN = ImageReading(
    2.0, 0.0, True, steps=2, after=1.0, resolved=False, position=3, area=0.25, peak=4.0
)
NAN_SCORE = ImageReading(float("-inf"), 0.0, False, valid=False)


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return save_pipeline(tmp_path_factory.mktemp("model"))


def plans_of(folder: Path, family: Family, *guards: str, **policy: Any) -> ImagePlans:
    """A policy "p" of guards that are on disk, "break" where none is named."""
    names = guards or ("break",)
    return ImagePlans(
        Config(
            guards=tuple(
                GuardConfig(name=name, artifact=folder / f"{name}.safetensors") for name in names
            ),
            policies={
                "p": PolicyConfig(guards=names, **policy),
                "open": PolicyConfig(guards=names, on_error="open"),
            },
        ),
        family,
        name="tiny",
    )


def plan_of(folder: Path, family: Family, **policy: Any) -> ImagePlan:
    save_eraser(folder / "break.safetensors", family)
    return plans_of(folder, family, **policy)["p"]


def test_the_guard_is_in_the_stacks_of_latents_only(tmp_path: Path, family: Family) -> None:
    save_eraser(tmp_path / "break.safetensors", family)
    plans = plans_of(tmp_path, family, action="perturb")
    assert [stack.names for stack in plans.stacks.latents] == [("break",)]
    assert (
        plans.stacks.prompts.names == ()
        and plans.stacks.output.names == ()
        and plans.stacks.guidance == ()
    )
    plan = plans["p"]
    assert plan.inspects_images and not plan.acts_on_guidance and plan.prompt_rows() == ()
    assert [replace(guard, digest="") for guard in plan.guards] == [
        LoadedGuard("break", "object/knife", METHODS["irece"], 0.0, 1.0)
    ]


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "another pipeline": ({"fitted_on": "0" * 64}, "was fitted on 'tiny'.*not on 'tiny'"),
    "channels": ({"channels": 5}, "guard break: takes latents of 5 channels, the model's have 4"),
    "a layer": ({"reads": [["nowhere", 0]]}, "guard break: the model has no layer 'nowhere'"),
    "a head": ({"head": 99}, r"guard break: .* has \d+ heads, none of number 99"),
    "a width": (
        {"keys0.attention": torch.ones(2, 3), "others0.attention": torch.ones(2, 3)},
        "guard break: .* numbers a head, not of 3",
    ),
    "replacement": ({"replacement": "a cat"}, "replacement must be one of background"),
    "no place": ({"reads": [], "votes": 0.0}, "without reads and votes"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_guard_that_does_not_fit_breaks_its_policies(
    tmp_path: Path, family: Family, fault: str
) -> None:
    changed, reason = FAULTS[fault]
    changed = dict(changed)
    if "head" in changed:
        changed = {"reads": [[next(iter(family.readable)), changed["head"]]]}
    save_eraser(tmp_path / "break.safetensors", family, **changed)
    plans = plans_of(tmp_path, family)
    assert plans.stacks.latents == () and plans["p"].refuses and plans.usable == ("none", "open")
    assert re.search(reason, plans["p"].broken["break"])
    assert plans["p"].verdict({}, **REPORT).outcome == "error"  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("policy", "reading", "decision", "action", "outcome"),
    [
        ({"action": "perturb"}, SILENT, "generate", "none", "pass"),
        ({"action": "perturb"}, PERTURBED, "generate", "perturb", "perturbed"),
        # every acting policy uses the method's action
        ({"action": "refine"}, PERTURBED, "generate", "perturb", "perturbed"),
        ({"action": "perturb"}, STUBBORN, "block", "block", "blocked"),
        (
            {"action": "perturb", "fallback": "replace", "replacement": "a cat"},
            *(STUBBORN, "replace", "replace", "refined"),
        ),
        ({"action": "observe"}, OBSERVED, "generate", "observe", "pass"),
        ({"action": "flag"}, OBSERVED, "generate", "flag", "flagged"),
        ({"action": "block"}, OBSERVED, "block", "block", "blocked"),
        ({"action": "perturb"}, NAN_SCORE, "fail", "none", "error"),
        ({"action": "perturb", "on_error": "open"}, NAN_SCORE, "generate", "none", "error"),
    ],
)
def test_the_decision_and_the_verdict_on_a_reading(
    tmp_path: Path,
    family: Family,
    policy: dict[str, Any],
    reading: ImageReading,
    decision: str,
    action: str,
    outcome: str,
) -> None:
    plan = plan_of(tmp_path, family, **policy)
    assert plan.decide({"break": reading}) == decision
    verdict = plan.verdict({"break": reading}, **REPORT)  # type: ignore[arg-type]
    (entry,) = verdict.guards
    assert (verdict.outcome, entry.action) == (outcome, action)
    assert (entry.steps, entry.after) == (reading.steps, reading.after)
    assert (entry.area, entry.peak) == (reading.area, reading.peak)
    assert entry.position == (3 if reading.fired else None)
    # only a policy that acts writes to the latents
    acts = plan.action in ("perturb", "refine")
    assert [row.acts for row in plan.rows()] == [acts]


def test_one_policy_has_guards_of_the_prompt_the_latents_and_the_image(
    tmp_path: Path, family: Family
) -> None:
    save_guards(tmp_path, family)
    save_eraser(tmp_path / "break.safetensors", family)
    save_screen(tmp_path / "look.safetensors", family)
    plans = plans_of(tmp_path, family, "knife", "break", "look", action="perturb")
    plan = plans["p"]
    actions = {fitted.name: fitted.action for fitted in plan.guards}
    assert actions == {"knife": "refine", "break": "perturb", "look": "block"}
    assert [row.name for row in plan.prompt_rows()] == ["knife"]
    refined = ImageReading(0.9, 0.5, True, steps=1, after=0.1)
    clear = ImageReading(-1.0, 0.0, False, position=4)
    readings = {"knife": refined, "break": PERTURBED, "look": clear}
    assert plan.decide(readings) == "generate"
    assert plan.verdict(readings, **REPORT).outcome == "perturbed"  # type: ignore[arg-type]
    shown = ImageReading(1.0, 0.0, True, resolved=False, position=4)
    assert plan.decide(readings | {"look": shown}) == "block"


def test_an_attached_pipeline_is_followed(tmp_path: Path, family: Family) -> None:
    save_eraser(tmp_path / "break.safetensors", family)
    call = {"num_inference_steps": 4, "output_type": "np", "height": SIDE, "width": SIDE}

    def generate(action: Any, threshold: float) -> tuple[Any, Any]:
        path = tmp_path / "break.safetensors"
        config = Config(
            guards=(GuardConfig(name="break", artifact=path, threshold=threshold),),
            policies={"p": PolicyConfig(guards=("break",), action=action)},
        )
        generator = torch.Generator().manual_seed(1)
        with guard.attached(family.pipeline, "p", config=config) as handle:
            images = family.pipeline("a cat", generator=generator, **call).images
            return images, handle.verdicts()[0]

    bare = family.pipeline("a cat", generator=torch.Generator().manual_seed(1), **call).images
    images, observed = generate("observe", -99.0)
    assert np.array_equal(images, bare) and observed.outcome == "pass" and observed.guards[0].fired
    images, perturbed = generate("perturb", observed.guards[0].score - 1e-3)
    assert perturbed.outcome == "perturbed" and perturbed.guards[0].area > 0
    assert not np.array_equal(images, bare)
