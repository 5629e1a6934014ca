"""Wan: text to video; the tokens of T5, with zeros at the padding."""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from numpy.typing import NDArray
from torch import Tensor, nn

from steering.engines.diffusion.families.transformers import T5Family
from steering.images.conditioning import Conditioning


class Wan(T5Family):
    """Stream `t5`. `frames` None is the pipeline's default."""

    def __init__(
        self, pipeline: Any, *, height: int | None, width: int | None, frames: int | None = None
    ) -> None:
        super().__init__(pipeline, height=height, width=width)
        self.frames: int = frames or self._default("num_frames")
        scale = pipeline.vae_scale_factor_temporal
        if self.frames % scale != 1 % scale:
            raise ValueError(f"frames must be one more than a multiple of {scale}, not {frames}")

    @property
    def refusal(self) -> str | None:
        config = self.pipeline.config
        if config.boundary_ratio is not None or config.expand_timesteps:
            return "Wan 2.2's two transformers and timesteps for each token are not supported"
        return None

    @property
    def shape(self) -> tuple[int, ...]:
        scale = self.pipeline.vae_scale_factor_spatial
        frames = (self.frames - 1) // self.pipeline.vae_scale_factor_temporal + 1
        channels = self.denoiser.config.in_channels
        return (channels, frames, self.height // scale, self.width // scale)

    @property
    def _multiple(self) -> int:
        patch = self.denoiser.config.patch_size
        return int(self.pipeline.vae_scale_factor_spatial * max(patch[1:]))

    def _default(self, argument: str) -> int:
        return int(signature(type(self.pipeline).__call__).parameters[argument].default)

    def _default_size(self) -> tuple[int, int]:
        return self._default("height"), self._default("width")

    def cleaned(self, texts: Sequence[str]) -> list[str]:
        return [prompt_clean(text) for text in texts]  # type: ignore[no-untyped-call]

    def _encode_prompt(self, prompts: list[str]) -> Sequence[Any]:
        encoded: Sequence[Any] = self.pipeline.encode_prompt(
            prompts,
            do_classifier_free_guidance=False,
            max_sequence_length=self.max_tokens,
            device=self.device,
        )
        return encoded

    def put_together(self, text: Conditioning) -> tuple[Tensor, ...]:
        return (text.states["t5"],)

    def predict(
        self, latents: Tensor, timesteps: Tensor, text: Conditioning, guidance: Tensor
    ) -> Tensor:
        (tokens,) = self.put_together(text)
        output: Tensor = self.denoiser(
            hidden_states=latents.to(self.dtype),
            timestep=timesteps,
            encoder_hidden_states=tokens.to(self.dtype),
            return_dict=False,
        )[0]
        return output

    def cross_attention(self) -> list[tuple[str, nn.Module]]:
        blocks = enumerate(self.denoiser.blocks)
        return [(f"blocks.{i}.attn2", block.attn2) for i, block in blocks]

    def encode_image(self, pixels: Tensor) -> Tensor:
        raise ValueError("Wan makes videos: it cannot start from an image")

    def _image(self, latents: Tensor) -> NDArray[np.float32]:
        vae = self.pipeline.vae
        latents = latents.to(vae.dtype)
        mean, deviation = (
            torch.tensor(values).view(1, -1, 1, 1, 1).to(latents)
            for values in (vae.config.latents_mean, vae.config.latents_std)
        )
        # divided by the reciprocal, as the pipeline does: the same bits
        video = vae.decode(latents / (1.0 / deviation) + mean, return_dict=False)[0]
        pixels: NDArray[np.float32] = self.pipeline.video_processor.postprocess_video(
            video, output_type="np"
        )
        return pixels
