"""Vision-language models in transformers: the families, by the `model_type` of their config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from steering.engines.transformers.vision.base import VisionFamily
from steering.engines.transformers.vision.gemma3 import Gemma3
from steering.engines.transformers.vision.idefics3 import Idefics3
from steering.engines.transformers.vision.llava import Llava
from steering.engines.transformers.vision.llava_next import LlavaNext
from steering.engines.transformers.vision.qwen import Qwen2VL, Qwen3VL

FAMILIES: Mapping[str, type[VisionFamily]] = {
    "gemma3": Gemma3,
    "idefics3": Idefics3,
    "llava": Llava,
    "llava_next": LlavaNext,
    "qwen2_vl": Qwen2VL,
    "qwen2_5_vl": Qwen2VL,
    "qwen3_vl": Qwen3VL,
    "smolvlm": Idefics3,
}


def takes_images(config: Any) -> bool:
    """Whether a transformers config is that of a vision-language model of a supported family."""
    return getattr(config, "model_type", None) in FAMILIES


def vision_family(config: Any, image_processor: Any, tokenizer: Any) -> VisionFamily:
    """The family of a model for which `takes_images`. Raises ValueError."""
    return FAMILIES[config.model_type](config, image_processor, tokenizer)
