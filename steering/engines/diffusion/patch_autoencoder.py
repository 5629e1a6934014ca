"""An autoencoder for small images: patches in, residual blocks at the latents' size, patches out.

The full-resolution layers of the usual autoencoders take most of the time on a CPU and matter
little for an image of 64 pixels; here no convolution runs above the latents' resolution.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTinyOutput
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.nn import functional as F


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, width)
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(F.silu(self.first(F.silu(self.norm(x)))))
        return x + y


class PatchAutoencoder(ModelMixin, ConfigMixin):  # type: ignore[misc]  # diffusers has no types
    """Images `[n, 3, height, width]` in -1..1 to latents `[n, channels, height / 4, width / 4]`.

    Deterministic in both directions, with the interface of diffusers' AutoencoderTiny, so that
    diffusers' pipelines accept it. `block_out_channels` serves these pipelines alone: they infer
    the scale from its length.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        width: int = 64,
        blocks: int = 3,
        latent_channels: int = 8,
        scaling_factor: float = 1.0,
        block_out_channels: tuple[int, ...] = (64, 64, 64),
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        patch = 2 ** (len(block_out_channels) - 1)
        self.encoder = nn.Sequential(
            nn.Conv2d(3, width, patch, patch),
            *(_Residual(width) for _ in range(blocks)),
            nn.GroupNorm(1, width),
            nn.Conv2d(width, latent_channels, 1),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(latent_channels, width, 3, padding=1),
            *(_Residual(width) for _ in range(blocks)),
            nn.GroupNorm(1, width),
            nn.Conv2d(width, 3 * patch**2, 3, padding=1),
            nn.PixelShuffle(patch),
        )

    def encode(self, x: Tensor, return_dict: bool = True) -> Any:
        latents = self.encoder(x)
        return AutoencoderTinyOutput(latents=latents) if return_dict else (latents,)

    def decode(
        self,
        z: Tensor,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> Any:
        sample = self.decoder(z)
        return DecoderOutput(sample=sample) if return_dict else (sample,)
