"""PixArt-Σ: the tokens of T5; the denoiser masks their padding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from diffusers.utils.import_utils import is_bs4_available, is_ftfy_available
from numpy.typing import NDArray
from torch import Tensor, nn

from steering.engines.diffusion.families.transformers import T5Family
from steering.images.conditioning import Conditioning


class PixArt(T5Family):
    """Stream `t5`; its mask is an input of the denoiser."""

    parts: ClassVar[tuple[int, ...]] = (0, 1)

    @property
    def shape(self) -> tuple[int, ...]:
        scale = self.pipeline.vae_scale_factor
        return (self.denoiser.config.in_channels, self.height // scale, self.width // scale)

    @property
    def _multiple(self) -> int:
        return int(self.pipeline.vae_scale_factor * self.denoiser.config.patch_size)

    def _default_size(self) -> tuple[int, int]:
        side = self.denoiser.config.sample_size * self.pipeline.vae_scale_factor
        return side, side

    def cleaned(self, texts: Sequence[str]) -> list[str]:
        return list(self.pipeline._text_preprocessing(list(texts), clean_caption=_cleans()))

    def take_apart(
        self, parts: Sequence[Tensor], texts: Mapping[str, Sequence[str]] | None
    ) -> Conditioning:
        states = self._states(parts)
        return Conditioning(states, {"t5": parts[1].bool()})

    def _encode_prompt(self, prompts: list[str]) -> Sequence[Any]:
        encoded: Sequence[Any] = self.pipeline.encode_prompt(
            prompts,
            do_classifier_free_guidance=False,
            device=self.device,
            clean_caption=_cleans(),
            max_sequence_length=self.max_tokens,
        )
        return encoded

    def put_together(self, text: Conditioning) -> tuple[Tensor, ...]:
        return text.states["t5"], text.masks["t5"].long()

    def predict(
        self, latents: Tensor, timesteps: Tensor, text: Conditioning, guidance: Tensor
    ) -> Tensor:
        tokens, mask = self.put_together(text)
        output: Tensor = self.denoiser(
            latents.to(self.dtype),
            encoder_hidden_states=tokens,
            encoder_attention_mask=mask,
            timestep=timesteps,
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
            return_dict=False,
        )[0]
        learns_variance = self.denoiser.config.out_channels // 2 == latents.shape[1]
        return output.chunk(2, 1)[0] if learns_variance else output

    def cross_attention(self) -> list[tuple[str, nn.Module]]:
        blocks = enumerate(self.denoiser.transformer_blocks)
        return [(f"transformer_blocks.{i}.attn2", block.attn2) for i, block in blocks]

    def _image(self, latents: Tensor) -> NDArray[np.float32]:
        return self._decoded(self._decoder_input(latents))


def _cleans() -> bool:
    """Whether captions are cleaned: the pipeline does so if these packages are installed."""
    return bool(is_bs4_available() and is_ftfy_available())  # type: ignore[no-untyped-call]
