"""Stable Diffusion 3: the tokens of two CLIP encoders, then those of T5; two pooled vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import calculate_shift
from numpy.typing import NDArray
from torch import Tensor, nn

from steering.engines.diffusion.families.readers import Reader
from steering.engines.diffusion.families.transformers import TransformerFamily
from steering.images.conditioning import Conditioning


class StableDiffusion3(TransformerFamily):
    """Streams `clip_l`, `clip_g`, `t5`, `pooled_l` and `pooled_g`; no `t5` without T5.

    The tokens of both CLIP encoders are concatenated by width, and padded with zeros to that of T5.
    """

    parts: ClassVar[tuple[int, ...]] = (0, 2)
    _needs = (
        *("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"),
        *("transformer", "vae"),
    )

    @property
    def readers(self) -> tuple[Reader, ...]:
        pipeline, tokens = self.pipeline, self.pipeline.tokenizer_max_length
        readers = [
            Reader("clip_l", "prompt", pipeline.tokenizer, tokens),
            Reader("clip_g", "prompt_2", pipeline.tokenizer_2, tokens),
        ]
        if self._has_t5:
            readers.append(Reader("t5", "prompt_3", pipeline.tokenizer_3, self.max_tokens))
        return tuple(readers)

    @property
    def shape(self) -> tuple[int, ...]:
        scale = self.pipeline.vae_scale_factor
        return (self.denoiser.config.in_channels, self.height // scale, self.width // scale)

    @property
    def _has_t5(self) -> bool:
        return self.pipeline.text_encoder_3 is not None

    @property
    def _multiple(self) -> int:
        return int(self.pipeline.vae_scale_factor * self.pipeline.patch_size)

    def _default_size(self) -> tuple[int, int]:
        side = self.pipeline.default_sample_size * self.pipeline.vae_scale_factor
        return side, side

    def arrange(self, scheduler: Any, steps: int) -> None:
        config = scheduler.config
        if not config.get("use_dynamic_shifting"):
            return super().arrange(scheduler, steps)
        _, height, width = self.shape
        patch = self.pipeline.patch_size
        mu = calculate_shift(
            (height // patch) * (width // patch),
            config.get("base_image_seq_len", 256),
            config.get("max_image_seq_len", 4096),
            config.get("base_shift", 0.5),
            config.get("max_shift", 1.16),
        )
        scheduler.set_timesteps(steps, mu=mu)

    def _encode_prompt(self, prompts: list[str]) -> Sequence[Any]:
        encoded: Sequence[Any] = self.pipeline.encode_prompt(
            prompts,
            None,
            None,
            device=self.device,
            do_classifier_free_guidance=False,
            max_sequence_length=self.max_tokens,
        )
        return encoded

    def _states(self, parts: Sequence[Tensor]) -> dict[str, Tensor]:
        whole, pooled = parts
        tokens = self.pipeline.tokenizer_max_length
        first, second = self.pipeline.text_encoder.config, self.pipeline.text_encoder_2.config
        middle, end = first.hidden_size, first.hidden_size + second.hidden_size
        states = {
            "clip_l": whole[:, :tokens, :middle],
            "clip_g": whole[:, :tokens, middle:end],
            "t5": whole[:, tokens:],
            "pooled_l": pooled[:, None, : first.projection_dim],
            "pooled_g": pooled[:, None, first.projection_dim :],
        }
        if not self._has_t5:
            del states["t5"]
        return states

    def put_together(self, text: Conditioning) -> tuple[Tensor, ...]:
        states = text.states
        clip = torch.cat([states["clip_l"], states["clip_g"]], -1)
        width = self.denoiser.config.joint_attention_dim
        clip = nn.functional.pad(clip, (0, width - clip.shape[-1]))
        t5 = states["t5"] if self._has_t5 else clip.new_zeros(len(clip), self.max_tokens, width)
        pooled = torch.cat([states["pooled_l"], states["pooled_g"]], -1)
        return torch.cat([clip, t5], 1), pooled[:, 0]

    def text_masks(self, text: Conditioning) -> tuple[Tensor, ...]:
        clip = text.masks["clip_l"] | text.masks["clip_g"]
        # without T5 its part is zeros, none of which is a token
        none = clip.new_zeros(len(clip), self.max_tokens)
        return clip, text.masks.get("t5", none)

    def predict(
        self, latents: Tensor, timesteps: Tensor, text: Conditioning, guidance: Tensor
    ) -> Tensor:
        whole, pooled = self.put_together(text)
        output: Tensor = self.denoiser(
            hidden_states=latents.to(self.dtype),
            timestep=timesteps,
            encoder_hidden_states=whole,
            pooled_projections=pooled,
            return_dict=False,
        )[0]
        return output

    def cross_attention(self) -> list[tuple[str, nn.Module]]:
        blocks = enumerate(self.denoiser.transformer_blocks)
        return [(f"transformer_blocks.{i}.attn", block.attn) for i, block in blocks]

    def _image(self, latents: Tensor) -> NDArray[np.float32]:
        return self._decoded(self._decoder_input(latents) + self.pipeline.vae.config.shift_factor)
