"""The latents of every family: noise, packing, encoding and decoding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from steering.engines.diffusion.families import Family, family_of
from tests.steering.engines.diffusion import tiny
from tests.steering.engines.diffusion.tiny import shared

CHANNELS = {"emoji": 8, "flux": 2, "flux, not distilled": 2}


IMAGES = [name for name in tiny.PIPELINES if name != "wan"]


def test_noise_depends_on_the_seed_of_a_row_alone(name: str) -> None:
    family = shared(name)
    both = family.noise([7, 8])
    assert torch.equal(both[1:], family.noise([8])) and not torch.equal(both[0], both[1])
    assert both.dtype == torch.float32


def test_unpacked_latents_have_the_shape_of_the_family(name: str) -> None:
    family = shared(name)
    noise = family.noise([7, 8])
    whole = family.unpacked(noise)
    assert whole.shape == (2, *family.shape)
    assert family.channels == whole.shape[1] == CHANNELS.get(name, 4)
    assert torch.equal(family.packed(whole), noise)


@pytest.mark.parametrize(("height", "width"), [(16, 16), (8, 32), (32, 8)])
def test_unpacking_is_packing_the_other_way_round(height: int, width: int) -> None:
    family = family_of(shared("flux").pipeline, height=height, width=width)
    whole = torch.arange(2.0 * 2 * height * width / 4).view(2, *family.shape)
    packed = family.packed(whole)
    assert packed.ndim == 3 and torch.equal(family.unpacked(packed), whole)


def test_the_autoencoder_is_the_pipelines_own(name: str) -> None:
    family = shared(name)
    assert family.autoencoder is family.pipeline.vae and isinstance(family.autoencoder, nn.Module)


def decoded(family: Family, latents: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    """The input of the autoencoder's decoder."""
    inputs: list[torch.Tensor] = []
    vae: Any = family.autoencoder
    decode = vae.decode

    def spied(z: torch.Tensor, *args: Any, **more: Any) -> Any:
        inputs.append(z)
        return decode(z, *args, **more)

    with torch.no_grad(), monkeypatch.context() as patch:
        patch.setattr(vae, "decode", spied)
        family.decode(family.packed(latents))
    return inputs[0]


@pytest.mark.parametrize("measured", [False, True])
@pytest.mark.parametrize("name", IMAGES)
def test_encoding_an_image_is_the_inverse_of_decoding(
    name: str, measured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = tiny.built(name)
    vae: Any = family.autoencoder
    if measured:
        if name != "stable diffusion xl":
            return
        vae.register_to_config(latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[1.0, 2.0, 0.5, 3.0])
    pixels = torch.rand(2, family.height, family.width, 3)
    latents = family.encode_image(pixels)
    assert latents.shape == (2, *family.shape) and latents.dtype == torch.float32
    with torch.no_grad():
        encoded = vae.encode(pixels.permute(0, 3, 1, 2) * 2 - 1)
    expected = encoded.latents if name == "emoji" else encoded.latent_dist.mode()
    torch.testing.assert_close(
        decoded(family, latents, monkeypatch), expected, rtol=1e-4, atol=1e-4
    )
    assert torch.equal(latents, family.encode_image(pixels)), "nothing is random"


def test_images_of_another_size_and_videos_are_refused() -> None:
    for shape in ((16, 16, 3), (1, 16, 12, 3), (1, 3, 16, 16)):
        with pytest.raises(ValueError, match="images must be"):
            shared("stable diffusion").encode_image(torch.zeros(shape))
    with pytest.raises(ValueError, match="makes videos"):
        shared("wan").encode_image(torch.zeros(1, 32, 32, 3))
