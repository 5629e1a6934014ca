"""Stable Diffusion XL: the tokens of two CLIP encoders, and the pooled vector of the second."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steering.engines.diffusion.families.readers import Reader
from steering.engines.diffusion.families.stable_diffusion import UNetFamily
from steering.images.conditioning import Conditioning


class StableDiffusionXL(UNetFamily):
    """Streams `clip_l`, `clip_g` and `pooled`."""

    parts: ClassVar[tuple[int, ...]] = (0, 2)
    _needs = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "unet", "vae")

    @property
    def readers(self) -> tuple[Reader, ...]:
        first, second = self.pipeline.tokenizer, self.pipeline.tokenizer_2
        return (
            Reader("clip_l", "prompt", first, first.model_max_length),
            Reader("clip_g", "prompt_2", second, second.model_max_length),
        )

    @property
    def refusal(self) -> str | None:
        vae = self.pipeline.vae
        if vae.dtype == torch.float16 and vae.config.get("force_upcast"):
            return "its autoencoder overflows in float16: load it in float32 (`vae.float()`)"
        return super().refusal

    def _default_size(self) -> tuple[int, int]:
        side = self.pipeline.default_sample_size * self._multiple
        return side, side

    def _encode_prompt(self, prompts: list[str]) -> Sequence[Any]:
        encoded: Sequence[Any] = self.pipeline.encode_prompt(
            prompts, device=self.device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        return encoded

    def unconditional(self, negative: Sequence[str]) -> Conditioning:
        text = self.encode(negative)
        if not self.pipeline.config.force_zeros_for_empty_prompt:
            return text
        empty = torch.tensor([not prompt for prompt in negative], device=self.device)
        zeros = {name: torch.zeros_like(state) for name, state in text.states.items()}
        return text.choose(empty, text.with_states(zeros))

    def _states(self, parts: Sequence[Tensor]) -> dict[str, Tensor]:
        tokens, pooled = parts
        width = self.pipeline.text_encoder.config.hidden_size
        return {
            "clip_l": tokens[..., :width],
            "clip_g": tokens[..., width:],
            "pooled": pooled[:, None],
        }

    def put_together(self, text: Conditioning) -> tuple[Tensor, ...]:
        states = text.states
        tokens = torch.cat([states["clip_l"], states["clip_g"]], -1)
        return tokens, states["pooled"][:, 0]

    def text_masks(self, text: Conditioning) -> tuple[Tensor, ...]:
        return (text.masks["clip_l"] | text.masks["clip_g"],)

    def predict(
        self, latents: Tensor, timesteps: Tensor, text: Conditioning, guidance: Tensor
    ) -> Tensor:
        tokens, pooled = self.put_together(text)
        size = (self.height, self.width)
        width = self.pipeline.text_encoder_2.config.projection_dim
        time_ids = self.pipeline._get_add_time_ids(size, (0, 0), size, tokens.dtype, width)
        output: Tensor = self.denoiser(
            latents.to(self.dtype),
            timesteps,
            encoder_hidden_states=tokens,
            added_cond_kwargs={
                "text_embeds": pooled,
                "time_ids": time_ids.to(latents.device).expand(len(latents), -1),
            },
            return_dict=False,
        )[0]
        return output

    def _scaled(self, latents: Tensor) -> Tensor:
        if (statistics := self._statistics(latents)) is None:
            return super()._scaled(latents)
        mean, deviation = statistics
        return (latents - mean) * float(self.pipeline.vae.config.scaling_factor) / deviation

    def _statistics(self, latents: Tensor) -> tuple[Tensor, Tensor] | None:
        """Mean and deviation of the autoencoder's latents by channel, if its config has them."""
        config = self.pipeline.vae.config
        values = config.get("latents_mean"), config.get("latents_std")
        if values[0] is None or values[1] is None:
            return None
        mean, deviation = (torch.tensor(v).view(1, -1, 1, 1).to(latents) for v in values)
        return mean, deviation

    def _image(self, latents: Tensor) -> NDArray[np.float32]:
        vae = self.pipeline.vae
        latents, scale = latents.to(vae.dtype), vae.config.scaling_factor
        if (statistics := self._statistics(latents)) is not None:
            mean, deviation = statistics
            latents = latents * deviation / scale + mean
        else:
            latents = latents / scale
        image = vae.decode(latents, return_dict=False)[0]
        if self.pipeline.watermark is not None:
            image = self.pipeline.watermark.apply_watermark(image)
        return self._pixels(image)
