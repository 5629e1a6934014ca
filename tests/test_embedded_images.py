"""Images as input, on the embedded image model (`guard models add emoji`): `make test-slow`."""

from __future__ import annotations

import io
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from examples.emoji.scenes import BACKGROUNDS, Placed, Scene, render
from examples.emoji.sprites import names
from guard.config.schema import load_config
from guard.models.sources import resolve_source
from server.app import create_app
from server.services.build import build_services
from steering.engines.diffusion.engine import DiffusionEngine, ImageStart
from steering.engines.diffusion.families import Family, family_of
from steering.engines.diffusion.loading import load_pipeline
from steering.engines.diffusion.sampling.noise_recovery import recovered_noise
from steering.engines.diffusion.sampling.trajectories import GivenNoise, InvertedImage
from tests.server.live_server import serve_app

FITTED = Path(__file__).parent.parent / "examples" / "emoji" / "fitted"
# of the example's config.toml, without the baselines, which are not fitted yet
CONFIG = f"""
[[models]]
name = "emoji"
source = "emoji"
engine = "diffusers"
device = "cpu"
[[guards]]
name = "knife-cgce"
artifact = "{FITTED}/knife-cgce.safetensors"
[[guards]]
name = "knife-latents"
artifact = "{FITTED}/knife-latents.safetensors"
[policies.knife-cgce-latents]
guards = ["knife-cgce", "knife-latents"]
action = "refine"
"""
STEPS = 25
PROMPT = "an image"

pytestmark = pytest.mark.slow


@cache
def family() -> Family:
    return family_of(load_pipeline(resolve_source("emoji"), device="cpu"))


def scene(name: str, style: int, background: int) -> NDArray[np.float32]:
    placed = Placed(names().index(name), "centre", 16, 16)
    return render(Scene((placed,), style, background))


def scenes() -> tuple[list[str], NDArray[np.float32]]:
    shown = ["knife", "cat", "pizza", "car", "rose", "house"]
    images = [scene(name, i % 2, i % len(BACKGROUNDS)) for i, name in enumerate(shown)]
    return shown, np.stack(images)


def psnr(one: Any, other: Any) -> NDArray[np.float64]:
    """Of images in 0..1, `[rows]`."""
    error = (np.asarray(one, np.float64) - other) ** 2
    return -10 * np.log10(error.mean((1, 2, 3)))


def seen(latents: torch.Tensor) -> NDArray[np.float64]:
    with torch.no_grad():
        return family().decode(latents) / 255.0


def drawn(starts: list[ImageStart]) -> torch.Tensor:
    engine = DiffusionEngine(family(), capacity=len(starts))
    engine.start(starts)
    while not (done := engine.step()):
        pass
    assert len(done) == len(starts)
    return engine.finished(done)


def test_the_autoencoder_gives_real_scenes_back() -> None:
    _, images = scenes()
    latents = family().encode_image(torch.from_numpy(images))
    found = psnr(seen(latents), images)
    print("decode(encode(x)):", found.round(1))
    assert found.min() > 27


@pytest.mark.parametrize("prompted", [True, False])
def test_an_inverted_image_is_drawn_back_without_guidance(prompted: bool) -> None:
    shown, images = scenes()
    latents = family().encode_image(torch.from_numpy(images))
    prompts = [f"a {name}" if prompted else PROMPT for name in shown]
    back = drawn(
        [
            ImageStart(prompt, steps=STEPS, guidance=1.0, initial=InvertedImage(own))
            for prompt, own in zip(prompts, latents, strict=True)
        ]
    )
    found = psnr(seen(back), seen(latents))
    print("inverted and drawn:", found.round(1))
    assert np.median(found) > 30
    noise = recovered_noise(family(), latents[:1], prompts[:1], steps=STEPS)
    (again,) = drawn(
        [ImageStart(prompts[0], steps=STEPS, guidance=1.0, initial=GivenNoise(noise[0]))]
    )
    assert torch.equal(again, back[0])


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    path = tmp_path_factory.mktemp("emoji") / "config.toml"
    path.write_text(CONFIG)
    config = load_config(path)
    services = build_services(config, lambda request, verdict: None)
    with serve_app(create_app(config, services), services) as (url, _):
        yield url


def png(name: str) -> bytes:
    file = io.BytesIO()
    pixels = (scene(name, 0, 0) * 255).round().astype(np.uint8)
    Image.fromarray(pixels).resize((128, 128)).save(file, "PNG")
    return file.getvalue()


def edited(url: str, name: str, policy: str, **how: Any) -> Any:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0, timeout=300)
    more = {
        "seed": 1,
        "num_inference_steps": STEPS,
        "guidance_scale": 1,
        "guard": {"policy": policy},
    } | how
    return client.images.edit(
        model="emoji", image=("x.png", png(name)), prompt=PROMPT, extra_body=more
    )


@pytest.mark.parametrize("how", [{"strength": 0.3}, {"inversion": True}])
def test_a_image_of_the_concept_does_not_get_out_as_an_edit(url: str, how: dict[str, Any]) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        edited(url, "knife", "knife-cgce-latents", **how)
    assert caught.value.code == "content_policy_violation"
    response: httpx.Response = caught.value.response  # type: ignore[assignment]
    told = {each["guard"]: each for each in response.json()["guard"]["guards"]}
    assert told["knife-latents"]["fired"] and not told["knife-cgce"]["fired"]
    assert edited(url, "knife", "none", **how).data, "it is what the bare model draws"
    other = edited(url, "pizza", "knife-cgce-latents", **how)
    assert other.data and other.model_extra["guard"]["outcome"] == "pass"
