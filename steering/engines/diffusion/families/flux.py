"""Flux: the tokens of T5, the pooled vector of CLIP; guidance may be an input of the network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from numpy.typing import NDArray
from torch import Tensor, nn

from steering.engines.diffusion.families.readers import Reader
from steering.engines.diffusion.families.transformers import TransformerFamily
from steering.images.conditioning import Conditioning


class Flux(TransformerFamily):
    """Streams `t5` and `pooled`.

    In a distilled network a row's guidance is an input, and its negative prompt has no effect;
    otherwise it is the scale of classifier-free guidance, the pipeline's `true_cfg_scale`.
    """

    parts: ClassVar[tuple[int, ...]] = (0, 1)
    separate_negative: ClassVar[bool] = True
    _needs = (
        *("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"),
        *("transformer", "vae"),
    )

    def __init__(self, pipeline: Any, *, height: int | None, width: int | None) -> None:
        super().__init__(pipeline, height=height, width=width)
        self.default_guidance = "guidance_scale" if self.distilled else "true_cfg_scale"

    @property
    def distilled(self) -> bool:
        return bool(self.denoiser.config.guidance_embeds)

    @property
    def readers(self) -> tuple[Reader, ...]:
        pipeline = self.pipeline
        return (
            Reader("pooled", "prompt", pipeline.tokenizer, pipeline.tokenizer_max_length),
            Reader("t5", "prompt_2", pipeline.tokenizer_2, self.max_tokens),
        )

    @property
    def shape(self) -> tuple[int, ...]:
        scale = self.pipeline.vae_scale_factor
        return (self.denoiser.config.in_channels // 4, self.height // scale, self.width // scale)

    @property
    def _multiple(self) -> int:
        return int(self.pipeline.vae_scale_factor * 2)

    def _default_size(self) -> tuple[int, int]:
        side = self.pipeline.default_sample_size * self.pipeline.vae_scale_factor
        return side, side

    def arrange(self, scheduler: Any, steps: int) -> None:
        config = scheduler.config
        sigmas = None if config.get("use_flow_sigmas") else np.linspace(1.0, 1 / steps, steps)
        _, height, width = self.shape
        mu = calculate_shift(
            (height // 2) * (width // 2),
            config.get("base_image_seq_len", 256),
            config.get("max_image_seq_len", 4096),
            config.get("base_shift", 0.5),
            config.get("max_shift", 1.15),
        )
        if sigmas is None:
            scheduler.set_timesteps(steps, mu=mu)
        else:
            scheduler.set_timesteps(sigmas=sigmas, mu=mu)

    def _encode_prompt(self, prompts: list[str]) -> Sequence[Any]:
        encoded: Sequence[Any] = self.pipeline.encode_prompt(
            prompts, None, device=self.device, max_sequence_length=self.max_tokens
        )
        return encoded

    def _states(self, parts: Sequence[Tensor]) -> dict[str, Tensor]:
        tokens, pooled = parts
        return {"t5": tokens, "pooled": pooled[:, None]}

    def put_together(self, text: Conditioning) -> tuple[Tensor, ...]:
        return text.states["t5"], text.states["pooled"][:, 0]

    def predict(
        self, latents: Tensor, timesteps: Tensor, text: Conditioning, guidance: Tensor
    ) -> Tensor:
        tokens, pooled = self.put_together(text)
        _, height, width = self.shape
        positions = self.pipeline._prepare_latent_image_ids(
            1, height // 2, width // 2, latents.device, self.dtype
        )
        output: Tensor = self.denoiser(
            hidden_states=latents.to(self.dtype),
            timestep=timesteps.to(self.dtype) / 1000,
            guidance=guidance if self.distilled else None,
            pooled_projections=pooled,
            encoder_hidden_states=tokens,
            txt_ids=torch.zeros(tokens.shape[1], 3, device=latents.device, dtype=self.dtype),
            img_ids=positions,
            return_dict=False,
        )[0]
        return output

    def cross_attention(self) -> list[tuple[str, nn.Module]]:
        names = ("transformer_blocks", "single_transformer_blocks")
        return [
            (f"{name}.{i}.attn", block.attn)
            for name in names
            for i, block in enumerate(getattr(self.denoiser, name))
        ]

    def packed(self, latents: Tensor) -> Tensor:
        packed: Tensor = self.pipeline._pack_latents(latents, len(latents), *self.shape)
        return packed

    def unpacked(self, latents: Tensor) -> Tensor:
        scale = self.pipeline.vae_scale_factor
        unpacked: Tensor = self.pipeline._unpack_latents(latents, self.height, self.width, scale)
        return unpacked

    def _image(self, latents: Tensor) -> NDArray[np.float32]:
        latents = self._decoder_input(self.unpacked(latents))
        return self._decoded(latents + self.pipeline.vae.config.shift_factor)
