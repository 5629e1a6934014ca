"""Imported erasers against the pipelines that diffusers itself has loaded them into."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from diffusers import UniPCMultistepScheduler
from torch import Tensor

from guard.artifact import Artifact
from guard.data.concept import Concept
from guard.errors import DataError, ModelError
from guard.fitting.images.imported import ImportRequest, fit_import
from guard.fitting.prompts.rates import PromptRates
from guard.models.images import ImageModel
from steering.engines.diffusion.engine import DiffusionEngine, ImageStart
from steering.engines.diffusion.families import Family, family_of
from steering.fingerprint import fingerprint
from steering.hidden.rows import RowGuard
from steering.images.stacks import ImageStacks
from steering.methods import METHODS
from steering.methods.fitted import FittedGuard
from steering.methods.stacking import MethodGuard
from tests.guard.fitting.overlays import checkpoints
from tests.steering.engines.diffusion import tiny

CONCEPT = Concept.model_validate(
    {
        "name": "object/knife",
        "phrases": {"train": ["a knife", "knife on the table"]},
        "hard_negatives": ["a cat", "a dog", "cat", "dog", "a cat and a dog", "a red table"],
        "replacements": ["a banana"],
    }
)
PROMPTS = ["a knife on the table", "a red cat"]


def silent(_what: str, _total: int) -> Callable[[int], None]:
    return lambda _count: None


def imported(source: Path, **request: Any) -> Artifact:
    family = tiny.shared("stable diffusion")
    model = ImageModel(family, name="tiny", architecture="StableDiffusionPipeline")
    rates = PromptRates(0.5, 0.5)
    settings = ImportRequest(source, prompts=6, **request)
    return fit_import(model, CONCEPT, None, rates, settings, silent)


def images(family: Family, artifact: Artifact | None = None) -> Tensor:
    """Latents of `PROMPTS`; with an artifact the first carries it, the second does not."""
    stacks, guards = ImageStacks(), ()
    if artifact is not None:
        fitted = FittedGuard("g", artifact.tensors, artifact.meta.settings)
        stacks = ImageStacks.of([MethodGuard(METHODS["overlay"], fitted)])
        guards = (RowGuard("g", threshold=0.0, strength=1.0, acts=True),)
    engine = DiffusionEngine(family, stacks, capacity=2)
    try:
        engine.start(
            [
                ImageStart(PROMPTS[0], seed=1, steps=4, guidance=3.0, guards=guards),
                ImageStart(PROMPTS[1], seed=2, steps=4, guidance=3.0),
            ]
        )
        while not (complete := engine.step()):
            pass
        return engine.finished(complete)
    finally:
        engine.close()


def loaded_by_diffusers(layout: str, source: Path) -> Family:
    """The base with the file in it, by the library's own means."""
    pipeline = checkpoints.pipeline()
    if layout == "diffusers LoRA of one network":
        file = "pytorch_lora_weights.safetensors"
        pipeline.unet.load_lora_adapter(source, prefix=None, weight_name=file, use_safetensors=True)
    elif layout.startswith("diffusers"):
        pipeline.load_lora_weights(source, local_files_only=True)
    elif layout == "kohya LoRA of SPM":
        pipeline.load_lora_weights(source)
    elif layout == "PEFT LoRA":
        from peft import PeftModel

        pipeline.unet = PeftModel.from_pretrained(pipeline.unet, source).merge_and_unload()
    else:
        changed = type(pipeline).from_pretrained(source, safety_checker=None)
        pipeline.unet, pipeline.text_encoder = changed.unet, changed.text_encoder
    return family_of(pipeline, height=16, width=16)


@pytest.mark.parametrize(
    "layout",
    [
        "PEFT LoRA",
        "diffusers LoRA without settings",
        "diffusers LoRA of one network",
        "kohya LoRA of SPM",
    ],
)
def test_images_are_those_of_the_pipeline_with_the_adapter(layout: str, tmp_path: Path) -> None:
    source, _ = checkpoints.LAYOUTS[layout](tmp_path)
    artifact = imported(source)
    bare = images(tiny.shared("stable diffusion"))
    guarded = images(tiny.shared("stable diffusion"), artifact)
    assert torch.equal(guarded[1], bare[1])
    expected = images(loaded_by_diffusers(layout, source))
    assert (expected[0] - bare[0]).abs().max() > 1e-2
    torch.testing.assert_close(guarded[0], expected[0], atol=2e-4, rtol=1e-3)


def test_a_whole_pipeline_at_full_rank_is_that_pipeline(tmp_path: Path) -> None:
    """Denoiser and text encoder; what is dropped is nothing here."""
    source, _ = checkpoints.whole_pipeline(tmp_path)
    found = imported(source)
    assert found.meta.settings["dropped"] == {}
    layers = [name for name in found.tensors if name.startswith("writes.")]
    assert any("text_encoder:" in name for name in layers) and len(layers) > 3
    bare = images(tiny.shared("stable diffusion"))
    expected = images(loaded_by_diffusers("weights", source))
    guarded = images(tiny.shared("stable diffusion"), found)
    change = (expected[0] - bare[0]).abs().max()
    # a layer gets no more directions than keep 99.9 % of its energy
    assert (guarded[0] - expected[0]).abs().max() < 0.05 * change
    assert torch.equal(guarded[1], bare[1])


def test_an_artifact_says_where_it_comes_from_and_what_it_lacks(tmp_path: Path) -> None:
    changed = checkpoints.pipeline()
    checkpoints.perturb(changed.unet, "attn2.to_k", "norm", "conv_in.bias")
    changed.save_pretrained(tmp_path / "esd")
    meta = imported(tmp_path / "esd").meta
    family = tiny.shared("stable diffusion")
    assert (meta.method, meta.seams, meta.concept) == ("overlay", ("projection",), "object/knife")
    assert meta.model.fingerprint == fingerprint(family.denoiser)
    assert meta.settings["encoders"] == fingerprint(torch.nn.ModuleDict(dict(family.encoders)))
    assert (meta.settings["source"], meta.settings["layout"]) == ("esd", "weights")
    assert meta.settings["gated"] is False
    dropped = cast(dict[str, list[str]], meta.settings["dropped"])
    assert dropped["biases"] == ["conv_in.bias"] and len(dropped["norms"]) > 10
    shares = cast(dict[str, float], meta.settings["shares"])
    assert len(shares) == 4 and min(shares.values()) == pytest.approx(meta.settings["share"])


def test_too_small_a_rank_is_refused_and_may_be_accepted(tmp_path: Path) -> None:
    source, _ = checkpoints.whole_network(tmp_path)
    with pytest.raises(DataError, match="layers keep less than 90%.*give --rank"):
        imported(source, rank=1)
    artifact = imported(source, rank=1, least_share=0.0)
    assert cast(float, artifact.meta.settings["share"]) < 0.9
    assert all(len(t) == 1 for n, t in artifact.tensors.items() if n.startswith("reads."))


def test_a_scheduler_that_the_engine_cannot_run_is_refused(tmp_path: Path) -> None:
    source, _ = checkpoints.spm_file(tmp_path)
    pipeline = checkpoints.pipeline()
    pipeline.scheduler = UniPCMultistepScheduler()
    family = family_of(pipeline, height=16, width=16)
    model = ImageModel(family, name="tiny", architecture="Tiny")
    request = ImportRequest(source, prompts=2)
    with pytest.raises(ModelError, match="model 'tiny': .*UniPC"):
        fit_import(model, CONCEPT, None, PromptRates(0.5, 0.5), request, silent)


def test_a_pipeline_that_cannot_be_overlaid_is_refused(tmp_path: Path) -> None:
    source, _ = checkpoints.spm_file(tmp_path)
    family = tiny.built("stable diffusion")
    model = ImageModel(family, name="tiny", architecture="Tiny")
    family.denoiser.fuse_qkv_projections()
    with pytest.raises(ModelError, match="model 'tiny': .*fused projections"):
        fit_import(
            model, CONCEPT, None, PromptRates(0.5, 0.5), ImportRequest(source, prompts=2), silent
        )
