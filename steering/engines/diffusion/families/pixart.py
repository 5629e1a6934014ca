"""PixArt-Σ: T5's tokens, whose padding the denoiser does not look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from diffusers.utils.import_utils import is_bs4_available, is_ftfy_available
from numpy.typing import NDArray
from torch import Tensor, nn

from steering.engines.diffusion.families.base import Family, Reader
from steering.images.conditioning import Conditioning


class PixArt(Family):
    """Stream `t5`; its mask is an input of the denoiser."""

    parts: ClassVar[tuple[int, ...]] = (0, 1)
    _needs = ("text_encoder", "tokenizer", "transformer", "vae")

    @property
    def denoiser(self) -> Any:
        return self.pipeline.transformer

    @property
    def readers(self) -> tuple[Reader, ...]:
        return (Reader("t5", "prompt", self.pipeline.tokenizer, self.max_tokens),)

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
        found: Sequence[Any] = self.pipeline.encode_prompt(
            prompts,
            do_classifier_free_guidance=False,
            device=self.device,
            clean_caption=_cleans(),
            max_sequence_length=self.max_tokens,
        )
        return found

    def _states(self, parts: Sequence[Tensor]) -> dict[str, Tensor]:
        return {"t5": parts[0]}

    def put_together(self, text: Conditioning) -> tuple[Tensor, ...]:
        return text.states["t5"], text.masks["t5"].long()

    def predict(
        self, latents: Tensor, timesteps: Tensor, text: Conditioning, guidance: Tensor
    ) -> Tensor:
        tokens, mask = self.put_together(text)
        said: Tensor = self.denoiser(
            latents.to(self.dtype),
            encoder_hidden_states=tokens,
            encoder_attention_mask=mask,
            timestep=timesteps,
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
            return_dict=False,
        )[0]
        learns_variance = self.denoiser.config.out_channels // 2 == latents.shape[1]
        return said.chunk(2, 1)[0] if learns_variance else said

    def cross_attention(self) -> list[tuple[str, nn.Module]]:
        blocks = enumerate(self.denoiser.transformer_blocks)
        return [(f"transformer_blocks.{i}.attn2", block.attn2) for i, block in blocks]

    def _image(self, latents: Tensor) -> NDArray[np.float32]:
        vae = self.pipeline.vae
        latents = latents.to(vae.dtype) / vae.config.scaling_factor
        image = vae.decode(latents, return_dict=False)[0]
        pixels: NDArray[np.float32] = self.pipeline.image_processor.postprocess(
            image, output_type="np"
        )
        return pixels


def _cleans() -> bool:
    """Whether captions are cleaned, as the pipeline does where it can."""
    found = is_bs4_available() and is_ftfy_available()  # type: ignore[no-untyped-call]
    return bool(found)
