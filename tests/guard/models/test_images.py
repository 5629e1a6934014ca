"""The latents of an image model's images: those that the engine would draw."""

from __future__ import annotations

import pytest
import torch

from guard.models.images import ImageModel
from steering.engines.diffusion.engine import DiffusionEngine, ImageStart
from steering.fingerprint import fingerprint
from tests.steering.engines.diffusion import tiny

PROMPTS = ["a knife", "a cat", "red dog"] * 6
"""More than are drawn at once."""


@pytest.fixture(scope="module")
def image_model() -> ImageModel:
    return ImageModel(tiny.built("emoji"), name="tiny", architecture="StableDiffusionPipeline")


def test_prompts_have_consecutive_seeds(image_model: ImageModel) -> None:
    counts: list[int] = []
    latents = image_model.generate_latents(
        PROMPTS, steps=3, guidance=2.0, seed=40, advance=counts.append
    )
    assert len(latents) == len(PROMPTS) and sum(counts) == len(PROMPTS)
    engine = DiffusionEngine(image_model.family, capacity=1)
    # first, within and behind the first batch
    for index in (0, 1, 15, 16, 17):
        engine.reset()
        engine.start([ImageStart(PROMPTS[index], seed=40 + index, steps=3, guidance=2.0)])
        while not engine.step():
            pass
        assert torch.allclose(latents[[index]], engine.finished([0]), atol=1e-3)
    assert not torch.allclose(latents[0], latents[3], atol=1e-1)


def test_steps_and_guidance_are_those_of_the_call(image_model: ImageModel) -> None:
    plain = image_model.generate_latents(["a knife"], steps=3, guidance=2.0)
    others = [
        image_model.generate_latents(["a knife"], steps=s, guidance=g)
        for s, g in ((4, 2.0), (3, 5.0))
    ]
    assert all(not torch.allclose(plain, other, atol=1e-3) for other in others)


def test_latents_can_be_trained_on(image_model: ImageModel) -> None:
    latents = image_model.generate_latents(PROMPTS[:2], steps=1, guidance=1.0)
    assert not latents.is_inference() and not latents.requires_grad
    assert latents.device.type == "cpu"


@pytest.mark.parametrize("name", ["emoji", "flux", "wan"])
def test_latents_have_the_shape_of_the_family(name: str) -> None:
    family = tiny.built(name)
    latents = ImageModel(family, name="tiny", architecture="").generate_latents(
        ["a cat"], steps=1, guidance=1.0
    )
    assert latents.shape == (1, *family.shape)


@pytest.mark.parametrize("name", ["emoji", "flux"])
def test_an_artifact_names_its_autoencoder(name: str) -> None:
    image_model = ImageModel(tiny.built(name), name="tiny", architecture="Pipeline")
    fitted = image_model.fitted_autoencoder()
    assert fitted.fingerprint == fingerprint(image_model.family.pipeline.vae)
    assert fitted.fingerprint != image_model.fitted_model().fingerprint
    assert (fitted.name, fitted.architecture) == ("tiny", "Pipeline")
    assert fitted.width == image_model.family.shape[0]
