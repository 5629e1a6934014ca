"""Families whose denoiser is a transformer, and those of them that T5 alone conditions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from steering.engines.diffusion.families.base import Family
from steering.engines.diffusion.families.readers import Reader


class TransformerFamily(Family):
    """A family whose denoiser is the pipeline's `transformer`."""

    @property
    def denoiser(self) -> Any:
        return self.pipeline.transformer


class T5Family(TransformerFamily):
    """Stream `t5`, the tokens of the only text encoder."""

    _needs = ("text_encoder", "tokenizer", "transformer", "vae")

    @property
    def readers(self) -> tuple[Reader, ...]:
        return (Reader("t5", "prompt", self.pipeline.tokenizer, self.max_tokens),)

    def _states(self, parts: Sequence[Tensor]) -> dict[str, Tensor]:
        return {"t5": parts[0]}
