"""Stable Diffusion XL: two text encoders side by side, and the second one's pooled vector."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steering.engines.diffusion.families.base import Reader
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
            return "its autoencoder overflows in float16: load that in float32 (`vae.float()`)"
        return super().refusal

    def _default_size(self) -> tuple[int, int]:
        side = self.pipeline.default_sample_size * self._multiple
        return side, side

    def _encode_prompt(self, prompts: list[str]) -> Sequence[Any]:
        found: Sequence[Any] = self.pipeline.encode_prompt(
            prompts, device=self.device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        return found

    def unconditional(self, negative: Sequence[str]) -> Conditioning:
        text = self.encode(negative)
        if not self.pipeline.config.force_zeros_for_empty_prompt:
            return text
        empty = torch.tensor([not prompt for prompt in negative], device=self.device)
        nothing = {name: torch.zeros_like(state) for name, state in text.states.items()}
        return text.choose(empty, text.with_states(nothing))

    def _states(self, parts: Sequence[Tensor]) -> dict[str, Tensor]:
        both, pooled = parts
        width = self.pipeline.text_encoder.config.hidden_size
        return {
            "clip_l": both[..., :width],
            "clip_g": both[..., width:],
            "pooled": pooled[:, None],
        }

    def put_together(self, text: Conditioning) -> tuple[Tensor, ...]:
        states = text.states
        both = torch.cat([states["clip_l"], states["clip_g"]], -1)
        return both, states["pooled"][:, 0]

    def text_masks(self, text: Conditioning) -> tuple[Tensor, ...]:
        return (text.masks["clip_l"] | text.masks["clip_g"],)

    def predict(
        self, latents: Tensor, timesteps: Tensor, text: Conditioning, guidance: Tensor
    ) -> Tensor:
        both, pooled = self.put_together(text)
        size = (self.height, self.width)
        width = self.pipeline.text_encoder_2.config.projection_dim
        about = self.pipeline._get_add_time_ids(size, (0, 0), size, both.dtype, width)
        said: Tensor = self.denoiser(
            latents.to(self.dtype),
            timesteps,
            encoder_hidden_states=both,
            added_cond_kwargs={
                "text_embeds": pooled,
                "time_ids": about.to(latents.device).expand(len(latents), -1),
            },
            return_dict=False,
        )[0]
        return said

    def _scaled(self, latents: Tensor) -> Tensor:
        if (known := self._range(latents)) is None:
            return super()._scaled(latents)
        shift, spread = known
        return (latents - shift) * float(self.pipeline.vae.config.scaling_factor) / spread

    def _range(self, latents: Tensor) -> tuple[Tensor, Tensor] | None:
        """Mean and spread of the autoencoder's latents by channel, where it has been told them."""
        config = self.pipeline.vae.config
        mean, deviation = config.get("latents_mean"), config.get("latents_std")
        if mean is None or deviation is None:
            return None
        shift, spread = (
            torch.tensor(each).view(1, -1, 1, 1).to(latents) for each in (mean, deviation)
        )
        return shift, spread

    def _image(self, latents: Tensor) -> NDArray[np.float32]:
        vae = self.pipeline.vae
        latents, scale = latents.to(vae.dtype), vae.config.scaling_factor
        if (known := self._range(latents)) is not None:
            shift, spread = known
            latents = latents * spread / scale + shift
        else:
            latents = latents / scale
        image = vae.decode(latents, return_dict=False)[0]
        if self.pipeline.watermark is not None:
            image = self.pipeline.watermark.apply_watermark(image)
        pixels: NDArray[np.float32] = self.pipeline.image_processor.postprocess(
            image, output_type="np"
        )
        return pixels
