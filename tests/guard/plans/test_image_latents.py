"""Guards that write to the latents on their way: which fit a model, what plans make of them."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import guard
from guard.config.schema import Config, GuardConfig, PolicyConfig
from guard.plans.base import LoadedGuard
from guard.plans.images import ImagePlan, ImagePlans
from steering.engines.diffusion.families import Family
from steering.images.embedding import ImageReading
from steering.methods import METHODS
from tests.server.tiny_pipeline import SIDE, save_eraser, save_guards, save_pipeline, save_screen

REPORT = {"request_id": "r-1", "model": "tiny", "elapsed_ms": 1.0}
SILENT = ImageReading(-1.0, 0.0, False)
SEEN = ImageReading(2.0, 0.0, True, resolved=False, position=3)
BROKEN = ImageReading(2.0, 0.0, True, steps=2, after=-1.0, position=3, area=0.25, peak=4.0)
STUBBORN = ImageReading(
    2.0, 0.0, True, steps=2, after=1.0, resolved=False, position=3, area=0.25, peak=4.0
)
SPOILT = ImageReading(float("-inf"), 0.0, False, valid=False)


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


def test_it_is_an_eraser_and_nothing_else(tmp_path: Path, family: Family) -> None:
    save_eraser(tmp_path / "break.safetensors", family)
    plans = plans_of(tmp_path, family, action="perturb")
    assert [eraser.names for eraser in plans.stacks.latents] == [("break",)]
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
def test_one_that_does_not_fit_breaks_its_policies(
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
        ({"action": "perturb"}, BROKEN, "generate", "perturb", "perturbed"),
        # any of the words for a method's own action
        ({"action": "refine"}, BROKEN, "generate", "perturb", "perturbed"),
        ({"action": "perturb"}, STUBBORN, "block", "block", "blocked"),
        (
            {"action": "perturb", "fallback": "replace", "replacement": "a cat"},
            *(STUBBORN, "replace", "replace", "refined"),
        ),
        ({"action": "observe"}, SEEN, "generate", "observe", "pass"),
        ({"action": "flag"}, SEEN, "generate", "flag", "flagged"),
        ({"action": "block"}, SEEN, "block", "block", "blocked"),
        ({"action": "perturb"}, SPOILT, "fail", "none", "error"),
        ({"action": "perturb", "on_error": "open"}, SPOILT, "generate", "none", "error"),
    ],
)
def test_what_becomes_of_a_reading(
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
    (told,) = verdict.guards
    assert (verdict.outcome, told.action) == (outcome, action)
    assert (told.steps, told.after) == (reading.steps, reading.after)
    assert (told.area, told.peak) == (reading.area, reading.peak)
    assert told.position == (3 if reading.fired else None)
    # only a policy that acts writes to the latents
    own = plan.action in ("perturb", "refine")
    assert [row.acts for row in plan.rows()] == [own]


def test_one_policy_takes_guards_of_the_prompt_the_way_and_the_image(
    tmp_path: Path, family: Family
) -> None:
    save_guards(tmp_path, family)
    save_eraser(tmp_path / "break.safetensors", family)
    save_screen(tmp_path / "look.safetensors", family)
    plans = plans_of(tmp_path, family, "knife", "break", "look", action="perturb")
    plan = plans["p"]
    actions = {each.name: each.action for each in plan.guards}
    assert actions == {"knife": "refine", "break": "perturb", "look": "block"}
    assert [row.name for row in plan.prompt_rows()] == ["knife"]
    refined = ImageReading(0.9, 0.5, True, steps=1, after=0.1)
    clear = ImageReading(-1.0, 0.0, False, position=4)
    told = {"knife": refined, "break": BROKEN, "look": clear}
    assert plan.decide(told) == "generate"
    assert plan.verdict(told, **REPORT).outcome == "perturbed"  # type: ignore[arg-type]
    shown = ImageReading(1.0, 0.0, True, resolved=False, position=4)
    assert plan.decide(told | {"look": shown}) == "block"


def test_a_pipeline_of_somebody_elses_is_followed(tmp_path: Path, family: Family) -> None:
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
    images, seen = generate("observe", -99.0)
    assert np.array_equal(images, bare) and seen.outcome == "pass" and seen.guards[0].fired
    images, broken = generate("perturb", seen.guards[0].score - 1e-3)
    assert broken.outcome == "perturbed" and broken.guards[0].area > 0
    assert not np.array_equal(images, bare)
