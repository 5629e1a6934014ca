"""LLaVA-1.5 (Liu et al. 2023, arXiv 2310.03744): one square image, one token a patch."""

from __future__ import annotations

from typing import Any

import numpy as np

from steering.engines.transformers.vision.base import VisionFamily

_CLASS_TOKENS = {"clip_vision_model": 1, "siglip_vision_model": 0, "dpt": 1}
"""Tokens of a tower in front of those of the patches."""


class Llava(VisionFamily):
    """`LlavaForConditionalGeneration` with a CLIP, SigLIP or DPT tower."""

    def __init__(self, config: Any, image_processor: Any, tokenizer: Any) -> None:
        super().__init__(config, image_processor, tokenizer)
        self._tokens = tower_tokens(config)
        require_size(self, config.vision_config.image_size)

    def count(self, height: int, width: int) -> int:
        return self._tokens


def tower_tokens(config: Any) -> int:
    """Tokens that a LLaVA model's tower makes of one square image. Raises ValueError."""
    vision = config.vision_config
    if vision.model_type not in _CLASS_TOKENS:
        raise ValueError(
            f"a vision tower of kind {vision.model_type!r} is not supported; supported are "
            f"{', '.join(_CLASS_TOKENS)}"
        )
    dropped = config.vision_feature_select_strategy == "default"
    patches = (vision.image_size // vision.patch_size) ** 2
    return int(patches + _CLASS_TOKENS[vision.model_type] - dropped)


def require_size(family: VisionFamily, side: int) -> None:
    """Raise ValueError where the image processor makes other images than the tower takes."""
    pixels = family.prepare([np.zeros((side, side, 3), np.uint8)])["pixel_values"]
    if tuple(pixels.shape[-2:]) != (side, side):
        raise ValueError(
            f"the image processor makes images of {' x '.join(map(str, pixels.shape[-2:]))} "
            f"pixels, and the vision tower takes {side} x {side}: correct preprocessor_config.json"
        )
