"""SPM's transport: the strength of a request's overlay, from its prompt's score."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from guard.fitting.images.imported import ImportRequest, fit_import
from guard.fitting.images.trained.denoisers.fit import fit_denoiser
from guard.fitting.images.training_free import FULL, encode_concept
from guard.fitting.prompts.concept_prompts import prompts_of
from guard.fitting.prompts.rates import PromptRates
from steering.engines.diffusion.engine import DiffusionEngine, ImageStart
from steering.hidden.rows import RowGuard
from steering.images.stacks import ImageStacks
from steering.methods import METHODS
from steering.methods.fitted import FittedGuard
from steering.methods.stacking import MethodGuard
from tests.guard.fitting.images.trained.denoisers.erasers import (
    CONCEPT,
    ERASERS,
    TRAINING,
    fitted,
    silent,
    tiny_model,
)
from tests.steering.engines.diffusion import tiny

NAME = "stable diffusion"
RATES = PromptRates(0.5, 0.5)


def image(guard: FittedGuard | None, threshold: float = 0.0, strength: float = 1.0) -> Tensor:
    family = tiny.shared(NAME)
    stacks = ImageStacks()
    if guard is not None:
        stacks = ImageStacks.of([MethodGuard(METHODS["overlay"], guard)])
    carried = [] if guard is None else [RowGuard("g", threshold, strength)]
    engine = DiffusionEngine(family, stacks, capacity=1)
    try:
        engine.start([ImageStart("a knife", seed=1, steps=3, guidance=3.0, guards=carried)])
        while not (complete := engine.step()):
            pass
        return engine.finished(complete)
    finally:
        engine.close()


def scored(score: float, full: float | None) -> FittedGuard:
    """A guard whose gate has the same score for every prompt."""
    artifact = fitted(NAME, ERASERS["spm"], replace(TRAINING, rank=1))
    width = tiny.shared(NAME).encode(["a"]).states["text"].shape[-1]
    settings: dict[str, Any] = {**artifact.meta.settings, "gated": True, "bias": score}
    settings |= {} if full is None else {"full_score": full}
    tensors = {**artifact.tensors, "weights.text": torch.zeros(width).numpy()}
    return FittedGuard("g", tensors, settings)


def test_the_share_multiplies_what_the_overlay_changes_once() -> None:
    """Halfway between threshold and full score: as at half the strength, not at a quarter."""
    half = image(scored(0.5, 0.75), threshold=0.25)
    once, twice = (image(scored(0.5, None), 0.25, strength) for strength in (0.5, 0.25))
    assert torch.equal(half, once) and not torch.equal(half, twice)
    assert not torch.equal(half, image(None))


def test_at_and_under_the_threshold_it_is_exactly_zero() -> None:
    guard, bare = scored(0.5, 0.75), image(None)
    for threshold in (0.5, 0.6):
        assert torch.equal(image(guard, threshold), bare)


def test_a_fit_takes_the_score_from_the_concepts_prompts() -> None:
    model = tiny_model(NAME)
    encoded = encode_concept(model, CONCEPT, prompts_of(CONCEPT, 100), silent)
    arguments = (model, CONCEPT, encoded, RATES, ERASERS["spm"], TRAINING, silent)
    settings = fit_denoiser(*arguments, transport=True).meta.settings
    assert "full_score" not in fit_denoiser(*arguments).meta.settings
    artifact = fit_denoiser(*arguments, transport=True)
    guard = FittedGuard("g", artifact.tensors, artifact.meta.settings)
    scores = METHODS["overlay"].stacked([guard], "cpu").sense(encoded.unsafe)[:, 0]
    full = float(str(settings["full_score"]))
    assert float((scores < full).float().mean()) == pytest.approx(FULL, abs=0.02)


def test_a_file_of_spm_is_imported_with_it(tmp_path: Path) -> None:
    """Its alpha over its rank is the scale of the product, once."""
    model = tiny_model(NAME)
    path = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
    weight: Any = model.family.denoiser.get_submodule(path).weight
    generator = torch.Generator().manual_seed(0)
    down = torch.randn(2, weight.shape[1], generator=generator)
    up = torch.randn(weight.shape[0], 2, generator=generator)
    stem = f"lora_unet_{path}".replace(".", "_")
    state = {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}
    save_file({**state, f"{stem}.alpha": torch.tensor(3.0)}, tmp_path / "spm.safetensors")
    encoded = encode_concept(model, CONCEPT, prompts_of(CONCEPT, 100), silent)
    request = ImportRequest(tmp_path / "spm.safetensors", prompts=2, transport=True)
    artifact = fit_import(model, CONCEPT, encoded, RATES, request, silent)
    change = artifact.tensors[f"writes.{path}"].T @ artifact.tensors["reads.0"]
    torch.testing.assert_close(torch.tensor(change), 3.0 / 2 * up @ down)
    assert "full_score" in artifact.meta.settings
