"""Stable Diffusion 1.x and 2.x, and models of that structure with another text encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from steering.engines.diffusion.families.base import Family
from steering.engines.diffusion.families.readers import Reader
from steering.images.conditioning import Conditioning


class UNetFamily(Family):
    """A family whose denoiser is a UNet2DConditionModel."""

    @property
    def denoiser(self) -> Any:
        return self.pipeline.unet

    @property
    def shape(self) -> tuple[int, ...]:
        scale = self._multiple
        return (self.denoiser.config.in_channels, self.height // scale, self.width // scale)

    @property
    def refusal(self) -> str | None:
        if self.denoiser.config.time_cond_proj_dim is not None:
            return "its UNet was distilled with guidance as an input, which is not supported"
        return None

    @property
    def _multiple(self) -> int:
        return int(self.pipeline.vae_scale_factor)

    def cross_attention(self) -> list[tuple[str, nn.Module]]:
        modules = self.denoiser.named_modules()
        return [(name, m) for name, m in modules if getattr(m, "is_cross_attention", False)]


class StableDiffusion(UNetFamily):
    """Stream `text`, the tokens of the only text encoder."""

    _needs = ("text_encoder", "tokenizer", "unet", "vae")

    @property
    def readers(self) -> tuple[Reader, ...]:
        tokenizer = self.pipeline.tokenizer
        return (Reader("text", "prompt", tokenizer, tokenizer.model_max_length),)

    def _default_size(self) -> tuple[int, int]:
        size = self.denoiser.config.sample_size
        height, width = size if isinstance(size, list | tuple) else (size, size)
        return height * self._multiple, width * self._multiple

    def _encode_prompt(self, prompts: list[str]) -> Sequence[Any]:
        encoded: Sequence[Any] = self.pipeline.encode_prompt(prompts, self.device, 1, False)
        return encoded

    def _states(self, parts: Sequence[Tensor]) -> dict[str, Tensor]:
        return {"text": parts[0]}

    def put_together(self, text: Conditioning) -> tuple[Tensor, ...]:
        return (text.states["text"],)

    def predict(
        self, latents: Tensor, timesteps: Tensor, text: Conditioning, guidance: Tensor
    ) -> Tensor:
        (states,) = self.put_together(text)
        output: Tensor = self.denoiser(
            latents.to(self.dtype), timesteps, encoder_hidden_states=states, return_dict=False
        )[0]
        return output

    def _image(self, latents: Tensor) -> NDArray[np.float32]:
        image = self.pipeline.vae.decode(self._decoder_input(latents), return_dict=False)[0]
        checked, unsafe = self.pipeline.run_safety_checker(image, self.device, self.dtype)
        pixels: NDArray[np.float32] = self.pipeline.image_processor.postprocess(
            torch.as_tensor(checked),
            output_type="np",
            do_denormalize=[not flagged for flagged in unsafe or [False] * len(image)],
        )
        return pixels
