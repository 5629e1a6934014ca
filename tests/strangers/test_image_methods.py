"""Methods of image models from other packages: served, attached, evaluated and checked."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import nn

import guard as product
from guard.artifact import Artifact
from guard.config.schema import load_config
from steering.engines.diffusion.families import Family, family_of
from steering.fingerprint import fingerprint
from steering.methods import Method
from tests.guard.evaluation.images.fakes import judge_file
from tests.server.tiny_pipeline import SIDE, WIDTH, save_guards, save_pipeline
from tests.strangers import late_turn, prompt_scaled_overlay
from tests.strangers.artifacts import guard, registered, save, served

METHODS = {"scaled": prompt_scaled_overlay.METHOD, "turn": late_turn.METHOD}
CONFIG = """
[server]
default_policy = "none"
[[models]]
name = "tiny"
source = "./pipeline"
engine = "diffusers"
device = "cpu"
steps = 4
guidance_scale = 3.0
""" + "".join(
    f"""
[[guards]]
name = "{name}"
artifact = "{name}.safetensors"
[policies.knife-{name}]
guards = ["{name}"]
"""
    for name in METHODS
)
SUITE = """
model = "tiny"
judge = "judge.onnx"
prompts = ["prompts.jsonl"]
steps = 4
batch = 4
verify = 1
ours = "scaled"
[methods]
scaled = "{concept}-scaled"
turn = "{concept}-turn"
"""
ROWS = [
    {"concept": "knife", "kind": "direct", "prompt": "a knife"},
    {"concept": "knife", "kind": "clean", "prompt": "a cat"},
]
LAYERS = ("text_encoder:encoder.layers.0.mlp.fc1", "text_encoder:encoder.layers.0.mlp.fc2")
DENOISER = ("mid_block.attentions.0.transformer_blocks.0.ff.net.2", "conv_in")


def _overlay(family: Family) -> dict[str, Any]:
    """Tensors for two linears of the text encoder, one of the denoiser, and a convolution."""
    generator = torch.Generator().manual_seed(4)
    encoder = dict(family.encoders)["text_encoder"]
    tensors: dict[str, Any] = {}
    for layer in (*LAYERS, *DENOISER):
        component, _, path = layer.rpartition(":")
        module: Any = (encoder if component else family.denoiser).get_submodule(path)
        out, *reads = module.weight.shape
        tensors[f"up.{layer}"] = torch.randn(1, out, generator=generator).numpy()
        tensors[f"down.{layer}"] = 0.5 * torch.randn(1, *reads, generator=generator).numpy()
    return tensors


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    base = tmp_path_factory.mktemp("strangers")
    family = save_pipeline(base / "pipeline")
    save_guards(base, family)
    shipped = Artifact.load(base / "knife.safetensors")
    gate = {"weights.text": shipped.tensors["weights.text"]}
    settings = {key: shipped.meta.settings[key] for key in ("threshold", "bias", "streams")}
    settings |= {"strength": 0.5, "gated": True, "turn": 0.5}
    for name, tensors in (("scaled", _overlay(family)), ("turn", {})):
        save(
            base / f"{name}.safetensors",
            METHODS[name],
            fingerprint=fingerprint(nn.ModuleDict(dict(family.encoders))),
            width=WIDTH,
            layers=1,
            tensors=gate | tensors,
            settings=settings,
        )
    judge_file(base / "judge.onnx", side=SIDE)
    (base / "config.toml").write_text(CONFIG)
    (base / "suite.toml").write_text(SUITE)
    (base / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    with registered(*METHODS.values()):
        yield base


@pytest.fixture(scope="module")
def files(folder: Path) -> dict[tuple[str, str], Any]:
    """The server's image and verdict, by policy and prompt."""
    replies = {}
    with served(folder / "config.toml") as client:
        for policy in ("none", *(f"knife-{name}" for name in METHODS)):
            for prompt in ("a knife", "a cat"):
                body = {"model": "tiny", "prompt": prompt, "seed": 3, "guard": {"policy": policy}}
                reply = client.post("/v1/images/generations", json=body)
                assert reply.status_code == 200, reply.text
                (image,) = reply.json()["data"]
                replies[policy, prompt] = base64.b64decode(image["b64_json"]), image["guard"]
    return replies


@pytest.mark.parametrize(("name", "outcome"), [("scaled", "overlaid"), ("turn", "steered")])
def test_they_are_served(files: dict[tuple[str, str], Any], name: str, outcome: str) -> None:
    image, verdict = files[f"knife-{name}", "a knife"]
    assert verdict["outcome"] == outcome and image != files["none", "a knife"][0]
    assert verdict["guards"][0]["method"] == METHODS[name].name
    silent, verdict = files[f"knife-{name}", "a cat"]
    assert verdict["outcome"] == "pass" and silent == files["none", "a cat"][0]


def _pipeline(folder: Path) -> Any:
    pipeline = StableDiffusionPipeline.from_pretrained(folder / "pipeline", safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _call(pipeline: Any, prompts: list[str]) -> Any:
    generators = [torch.Generator().manual_seed(3) for _ in prompts]
    return pipeline(
        prompts,
        num_inference_steps=4,
        guidance_scale=3.0,
        generator=generators,
        output_type="np",
        height=SIDE,
        width=SIDE,
    ).images


@pytest.mark.parametrize("name", list(METHODS))
def test_they_are_attached(folder: Path, name: str) -> None:
    pipeline, prompts = _pipeline(folder), ["a knife", "a cat"]
    bare = _call(pipeline, prompts)
    config = load_config(folder / "config.toml")
    with product.attached(pipeline, f"knife-{name}", config=config) as handle:
        guarded = _call(pipeline, prompts)
        fired = [verdict.guards[0].fired for verdict in handle.verdicts()]
    assert fired == [True, False]
    assert np.abs(guarded[0] - bare[0]).max() > 1e-4 and np.array_equal(guarded[1], bare[1])
    assert np.array_equal(_call(pipeline, prompts), bare)


def test_the_strength_follows_the_prompt(folder: Path) -> None:
    """The same guard changes a prompt with a lower score less."""
    family = family_of(_pipeline(folder))
    from guard.plans.images import ImagePlans
    from steering.engines.diffusion.prompts import PromptGuarding

    plans = ImagePlans(load_config(folder / "config.toml"), family, name="tiny")
    guarding = PromptGuarding(family, plans.stacks)
    rows = [[*plans["knife-scaled"].rows()]] * 2
    with torch.no_grad():
        guarded = guarding(["a knife", "knife knife knife"], rows)
    guarding.close()
    readings = [row["scaled"] for row in guarded.applied.readings]
    assert all(reading.fired for reading in readings)
    assert [reading.scale for reading in readings] == [
        pytest.approx(min(max(reading.score, 0.0), 1.0)) for reading in readings
    ]
    assert not torch.equal(guarded.applied.text.states["text"], guarded.bare.states["text"])


def test_an_overlaid_encoder_encodes_like_the_edited_one(folder: Path) -> None:
    family = family_of(_pipeline(folder))
    from guard.plans.images import ImagePlans
    from steering.engines.diffusion.prompts import PromptGuarding

    plans = ImagePlans(load_config(folder / "config.toml"), family, name="tiny")
    guarding = PromptGuarding(family, plans.stacks)
    rows = [[*plans["knife-scaled"].rows()], []]
    with torch.no_grad():
        guarded = guarding(["a knife", "a knife"], rows)
        guarding.close()
        strength = 0.5 * guarded.applied.readings[0]["scaled"].scale
        tensors = Artifact.load(folder / "scaled.safetensors").tensors
        encoder = dict(family.encoders)["text_encoder"]
        for layer in LAYERS:
            delta = tensors[f"up.{layer}"].T @ tensors[f"down.{layer}"]
            weight: Any = encoder.get_submodule(layer.partition(":")[2]).weight
            weight += strength * torch.from_numpy(delta)
        edited = family.encode(["a knife"])
    got = guarded.applied.text.states["text"]
    torch.testing.assert_close(got[0], edited.states["text"][0], atol=1e-4, rtol=1e-4)
    assert torch.equal(got[1], guarded.bare.states["text"][1])


def test_they_are_evaluated_and_checked(folder: Path, tmp_path: Path) -> None:
    config = folder / "config.toml"
    checked = guard("check", config, "--json").stdout
    assert all(method.name in checked for method in METHODS.values())
    guard("eval", "images", folder / "suite.toml", "--config", config, "--out", tmp_path)
    report = json.loads((tmp_path / "suite.images.json").read_text())
    assert set(report["methods"]) == {"bare", *METHODS}


def test_each_is_short() -> None:
    modules: list[Any] = [late_turn, prompt_scaled_overlay]
    for module in modules:
        assert len(Path(module.__file__).read_text().splitlines()) <= 60
        assert isinstance(module.METHOD, Method)
