"""Overlays in a configuration: which fit a pipeline, and the faults of the others."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from guard.artifact import Artifact
from guard.config.policy_schema import PolicyConfig
from guard.config.schema import Config, GuardConfig
from guard.plans.base import LoadedGuard
from guard.plans.images import ImagePlans
from steering.engines.diffusion.engine import DiffusionEngine, ImageStart
from steering.engines.diffusion.families import Family, family_of
from steering.images.embedding import ImageReading
from steering.methods import METHODS
from tests.server.tiny_pipeline import save_guards, save_pipeline

FIRED = ImageReading(0.9, 0.5, True)


@pytest.fixture
def family(tmp_path: Path) -> Family:
    saved = save_pipeline(tmp_path / "model")
    save_guards(tmp_path, saved)
    return family_of(saved.pipeline)


def plans_of(folder: Path, family: Family, *guards: str, **policy: Any) -> ImagePlans:
    names = guards or ("overlay",)
    config = Config(
        guards=tuple(GuardConfig(name=n, artifact=folder / f"{n}.safetensors") for n in names),
        policies={"p": PolicyConfig(guards=names, **policy)},
    )
    return ImagePlans(config, family, name="tiny")


def test_an_overlay_is_in_the_bank_of_prompts_and_among_the_overlays(
    tmp_path: Path, family: Family
) -> None:
    plans = plans_of(tmp_path, family, "overlay", "knife", action="overlay")
    assert plans.stacks.prompts.names == ("overlay", "knife") and [*plans.stacks.overlays] == [
        "overlay"
    ]
    assert plans.stacks.guidance == () and plans.stacks.output.names == ()
    plan = plans["p"]
    assert plan.acts and not plan.acts_on_guidance and not plan.inspects_images and not plan.broken
    assert replace(plan.guards[0], digest="") == LoadedGuard(
        "overlay", "object/knife", METHODS["uce"], 0.5, 1.0
    )
    assert [row.name for row in plan.prompt_rows()] == ["overlay", "knife"]


@pytest.mark.parametrize(
    ("action", "acts", "done", "outcome"),
    [
        ("overlay", True, "overlay", "overlaid"),
        ("refine", True, "overlay", "overlaid"),
        ("flag", False, "flag", "flagged"),
        ("observe", False, "observe", "pass"),
        ("block", False, "block", "blocked"),
    ],
)
def test_the_verdict_on_an_overlay(
    tmp_path: Path, family: Family, action: str, acts: bool, done: str, outcome: str
) -> None:
    plan = plans_of(tmp_path, family, action=action)["p"]
    assert [row.acts for row in plan.rows()] == [acts]
    verdict = plan.verdict({"overlay": FIRED}, request_id="r", model="tiny", elapsed_ms=1.0)
    assert (verdict.outcome, verdict.guards[0].action) == (outcome, done)
    assert plan.decide({"overlay": FIRED}) == ("block" if done == "block" else "generate")


def other_denoiser(family: Family) -> None:
    family.denoiser.conv_in.weight.data += 1.0


def other_encoders(family: Family) -> None:
    family.pipeline.text_encoder.get_input_embeddings().weight.data += 1.0


def fused(family: Family) -> None:
    family.denoiser.fuse_qkv_projections()


def adapted(family: Family) -> None:
    attention = family.cross_attention()[0][1]
    attention.to_k = nn.Sequential(attention.to_k)


FAULTS: dict[str, tuple[Callable[[Family], None], str]] = {
    "another denoiser": (other_denoiser, "was fitted on 'tiny'.*not on 'tiny'"),
    "other encoders": (other_encoders, "was fitted on other text encoders"),
    "fused projections": (fused, r"attn\d has fused projections.*fuse_qkv_projections$"),
    "adapters": (adapted, r"attn\d\.to_k is a Sequential.*without quantisation$"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_an_overlay_that_does_not_fit_breaks_its_policies(
    tmp_path: Path, family: Family, fault: str
) -> None:
    change, reason = FAULTS[fault]
    change(family)
    plans = plans_of(tmp_path, family)
    assert plans["p"].refuses and not plans.stacks.overlays and plans.stacks.prompts.names == ()
    assert re.search(reason, plans["p"].broken["overlay"])


def test_another_denoiser_leaves_the_guards_of_prompts_alone(
    tmp_path: Path, family: Family
) -> None:
    other_denoiser(family)
    assert not plans_of(tmp_path, family, "knife")["p"].refuses


def changed(folder: Path, name: str, tensors: Any = None, **settings: Any) -> None:
    """Save `name` as a copy of the overlay with other tensors or settings."""
    overlay = Artifact.load(folder / "overlay.safetensors")
    meta = overlay.meta.model_copy(
        update={"tensors_sha256": "", "settings": dict(overlay.meta.settings) | settings}
    )
    Artifact(meta, overlay.tensors if tensors is None else tensors(overlay.tensors)).save(
        folder / f"{name}.safetensors"
    )


def test_an_overlay_of_other_layers_or_widths_is_named(tmp_path: Path, family: Family) -> None:
    overlay = Artifact.load(tmp_path / "overlay.safetensors")
    layers = [
        name.removeprefix("writes.") for name in overlay.tensors if name.startswith("writes.")
    ]
    lost = {f"writes.{layers[0]}x": overlay.tensors[f"writes.{layers[0]}"]}
    changed(tmp_path, "lost", lambda tensors: tensors | lost, groups={"0": [layers[0] + "x"]})
    broken = plans_of(tmp_path, family, "lost")["p"].broken["lost"]
    assert f"other projections than the model's: {layers[0]}x" in broken
    changed(tmp_path, "wide", lambda tensors: tensors | {"reads.0": tensors["reads.0"][:, 1:]})
    broken = plans_of(tmp_path, family, "wide")["p"].broken["wide"]
    assert "of other widths than the layer: fit the guard again" in broken


def test_overlays_of_other_layers_and_groups_are_stacked_together(
    tmp_path: Path, family: Family
) -> None:
    overlay = Artifact.load(tmp_path / "overlay.safetensors")
    first, *rest = [n.removeprefix("writes.") for n in overlay.tensors if n.startswith("writes.")]
    changed(
        tmp_path,
        "apart",
        lambda tensors: tensors | {"reads.1": tensors["reads.0"]},
        groups={"0": [first], "1": rest},
    )
    changed(tmp_path, "less", groups={"0": rest})
    plans = plans_of(tmp_path, family, "overlay", "apart", "less")
    assert not plans["p"].refuses and [*plans.stacks.overlays] == ["overlay", "apart", "less"]
    start = ImageStart("a knife", steps=2, guidance=3.0, guards=plans["p"].rows())
    engine = DiffusionEngine(family, plans.stacks, capacity=1)
    engine.start([start])
    while not engine.step():
        pass
    assert engine.images([0]).any()


def test_an_overlay_is_recognised_by_its_method(tmp_path: Path, family: Family) -> None:
    overlay = Artifact.load(tmp_path / "overlay.safetensors")
    meta = overlay.meta.model_copy(update={"tensors_sha256": "", "seams": ("embedding",)})
    Artifact(meta, overlay.tensors).save(tmp_path / "overlay.safetensors")
    assert plans_of(tmp_path, family)["p"].guards[0].action == "overlay"
    other_denoiser(family)
    assert plans_of(tmp_path, family)["p"].refuses


def test_an_overlay_that_names_no_text_encoders_is_refused(tmp_path: Path, family: Family) -> None:
    changed(tmp_path, "nameless", encoders=None)
    broken = plans_of(tmp_path, family, "nameless")["p"].broken["nameless"]
    assert "was fitted on other text encoders (None)" in broken
