"""Every family in the engine: the images of the stock pipeline's call."""

from __future__ import annotations

from inspect import signature
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from steering.engines.diffusion.engine import DiffusionEngine, ImageStart
from steering.engines.diffusion.families import family_of
from tests.steering.engines.diffusion import tiny
from tests.steering.engines.diffusion.tiny import shared

T5 = tiny.T5_TOKENS


PROMPTS = ["a knife on the table", "cat"]


def stock(name: str, prompts: list[str], seeds: list[int], **more: Any) -> Any:
    """The images of the pipeline's call, at the family's size."""
    family = shared(name)
    call: dict[str, Any] = {
        "generator": [torch.Generator().manual_seed(seed) for seed in seeds],
        "height": family.height,
        "width": family.width,
        "output_type": "np",
    }
    known = signature(type(family.pipeline).__call__).parameters
    optional = {"max_sequence_length": T5, "num_frames": 5, "use_resolution_binning": False}
    call |= {key: value for key, value in optional.items() if key in known}
    with torch.no_grad():
        output = family.pipeline(prompts, **(call | more))
    return output.frames if hasattr(output, "frames") else output.images


def guided(name: str, scale: float, negative: list[str] | None) -> dict[str, Any]:
    """Arguments of the stock call for the engine's `guidance` and `negative_prompt`."""
    if name == "flux, not distilled":
        return {"true_cfg_scale": scale, "negative_prompt": negative or ["", ""]}
    if name == "flux" or negative is None:
        return {"guidance_scale": scale}
    return {"guidance_scale": scale, "negative_prompt": negative}


def generated(engine: DiffusionEngine, starts: list[ImageStart]) -> Any:
    engine.start(starts)
    while not (done := engine.step()):
        pass
    assert done == list(range(len(starts)))
    images = engine.images(done)
    engine.drop(done)
    return images


@pytest.mark.parametrize("negative", [None, ["a banana", "red"]])
def test_the_engine_makes_the_images_of_the_stock_pipeline(
    name: str, negative: list[str] | None
) -> None:
    family, seeds = shared(name), [3, 4]
    before = tiny.weights_hash(family.pipeline)
    starts = [
        ImageStart(prompt, (negative or ["", ""])[i], seeds[i], steps=4, guidance=3.0)
        for i, prompt in enumerate(PROMPTS)
    ]
    images = generated(DiffusionEngine(family, capacity=2), starts)
    options = guided(name, 3.0, negative)
    expected = (stock(name, PROMPTS, seeds, num_inference_steps=4, **options) * 255).round()
    assert images.dtype == np.uint8 and images.shape == expected.shape
    assert images.std() > 1
    away = np.abs(images.astype(float) - expected)
    # sums in another order may round to the neighbouring level
    assert away.max() <= 1 and (away > 0).mean() < 0.01
    assert tiny.weights_hash(family.pipeline) == before


def test_without_guidance_too(name: str) -> None:
    family = shared(name)
    start = ImageStart("a red dog", seed=5, steps=3, guidance=1.0)
    images = generated(DiffusionEngine(family, capacity=1), [start])
    options = {"true_cfg_scale": 1.0} if name == "flux, not distilled" else {"guidance_scale": 1.0}
    expected = (stock(name, ["a red dog"], [5], num_inference_steps=3, **options) * 255).round()
    assert np.abs(images.astype(float) - expected).max() <= 1


def test_the_safety_checker_of_the_pipeline_runs() -> None:
    family = tiny.built("stable diffusion")

    class Checker(nn.Module):
        def forward(self, images: torch.Tensor, clip_input: torch.Tensor) -> Any:
            return torch.zeros_like(images), [True] * len(images)

    def features(images: Any, return_tensors: str) -> Any:
        class Values(dict[str, torch.Tensor]):
            pixel_values = torch.zeros(len(images), 3, 4, 4)

            def to(self, _device: Any) -> Any:
                return self

        return Values()

    family.pipeline.safety_checker, family.pipeline.feature_extractor = Checker(), features
    start = ImageStart("cat", seed=1, steps=2, guidance=1.0)
    assert not generated(DiffusionEngine(family, capacity=1), [start]).any()


def test_pipelines_that_the_engine_cannot_run_are_refused() -> None:
    two_stage = tiny.wan()
    two_stage.register_to_config(boundary_ratio=0.5)
    family = family_of(two_stage, height=32, width=32, frames=5)
    with pytest.raises(ValueError, match="WanPipeline cannot be run: Wan 2.2"):
        DiffusionEngine(family, capacity=1)
    halved = tiny.stable_diffusion_xl()
    halved.vae.half()
    with pytest.raises(ValueError, match="autoencoder overflows in float16"):
        DiffusionEngine(family_of(halved, height=16, width=16), capacity=1)
    distilled = tiny.stable_diffusion()
    distilled.unet = tiny._unet(4, 8, 16, time_cond_proj_dim=8)
    with pytest.raises(ValueError, match="distilled"):
        DiffusionEngine(family_of(distilled, height=16, width=16), capacity=1)
