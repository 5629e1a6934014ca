"""Small models of the LLaVA and Idefics3 families: square images and tiles of a fixed size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import transformers
from transformers import ProcessorMixin

from tests.steering.engines.transformers.vision.family import TEXT, Family

SIDE, PATCH = 16, 4
_TOWER: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": PATCH,
    "initializer_range": 0.3,
    "initializer_factor": 8.0,
}
_PINPOINTS = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE], [SIDE, 5 * SIDE]]
_TURNS = (
    "{% for message in messages %}{{ message['role'] | upper }}: "
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}</s>{% endfor %}{% if add_generation_prompt %}ASSISTANT: {% endif %}"
)
_SPECIAL = ("<pad>", "<s>", "</s>", "<image>")
_TILES = (
    *("<fake_token_around_image>", "<global-img>", "<end_of_utterance>"),
    *(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)),
)


def _whole(ids: Mapping[str, int]) -> dict[str, Any]:
    text = TEXT | {
        "model_type": "llama",
        "vocab_size": ids["vocabulary"],
        "pad_token_id": ids["<pad>"],
        "bos_token_id": ids["<s>"],
        "eos_token_id": ids["</s>"],
    }
    return {
        "text_config": text,
        "image_token_id": ids["<image>"],
        "pad_token_id": ids["<pad>"],
        "tie_word_embeddings": False,
    }


def _clip() -> dict[str, Any]:
    return {
        "vision_config": {"model_type": "clip_vision_model", **_TOWER},
        "vision_feature_select_strategy": "default",
        "vision_feature_layer": -2,
    }


def _llava(ids: Mapping[str, int]) -> Any:
    return transformers.LlavaConfig(**_clip(), **_whole(ids))


def _llava_siglip(ids: Mapping[str, int]) -> Any:
    return transformers.LlavaConfig(
        vision_config={"model_type": "siglip_vision_model", **_TOWER},
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
        **_whole(ids),
    )


def _llava_next(ids: Mapping[str, int]) -> Any:
    return transformers.LlavaNextConfig(**_clip(), image_grid_pinpoints=_PINPOINTS, **_whole(ids))


def _clip_processor(tokenizer: Any) -> ProcessorMixin:
    from transformers.models.clip import image_processing_pil_clip as images

    pixels = images.CLIPImageProcessorPil(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
    )
    return transformers.LlavaProcessor(
        pixels,
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


def _siglip_processor(tokenizer: Any) -> ProcessorMixin:
    from transformers.models.siglip import image_processing_pil_siglip as images

    pixels = images.SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE})
    return transformers.LlavaProcessor(
        pixels, tokenizer, patch_size=PATCH, vision_feature_select_strategy="full"
    )


def _next_processor(tokenizer: Any) -> ProcessorMixin:
    from transformers.models.llava_next import image_processing_pil_llava_next as images

    pixels = images.LlavaNextImageProcessorPil(
        size={"shortest_edge": SIDE},
        crop_size={"height": SIDE, "width": SIDE},
        image_grid_pinpoints=_PINPOINTS,
    )
    return transformers.LlavaNextProcessor(
        pixels,
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


def _idefics3(ids: Mapping[str, int]) -> Any:
    tower = {"model_type": "idefics3_vision", **_TOWER}
    return transformers.Idefics3Config(vision_config=tower, scale_factor=2, **_whole(ids))


def _smolvlm(ids: Mapping[str, int]) -> Any:
    tower = {"model_type": "smolvlm_vision", **_TOWER}
    return transformers.SmolVLMConfig(vision_config=tower, scale_factor=2, **_whole(ids))


def _tiles(pixels: Any, tokenizer: Any) -> ProcessorMixin:
    return transformers.Idefics3Processor(pixels, tokenizer, image_seq_len=4)


def _idefics3_processor(tokenizer: Any) -> ProcessorMixin:
    from transformers.models.idefics3 import image_processing_pil_idefics3 as images

    size, side = {"longest_edge": 2 * SIDE + 8}, {"longest_edge": SIDE}
    return _tiles(images.Idefics3ImageProcessorPil(size=size, max_image_size=side), tokenizer)


def _smolvlm_processor(tokenizer: Any) -> ProcessorMixin:
    """That of Idefics3, which makes the same text: SmolVLM's needs a package for videos."""
    from transformers.models.smolvlm import image_processing_pil_smolvlm as images

    size, side = {"longest_edge": 2 * SIDE + 8}, {"longest_edge": SIDE}
    return _tiles(images.SmolVLMImageProcessorPil(size=size, max_image_size=side), tokenizer)


TILED = {
    "llava": Family(_SPECIAL, _TURNS, _llava, _clip_processor, {}),
    "llava-siglip": Family(_SPECIAL, _TURNS, _llava_siglip, _siglip_processor, {}),
    "llava_next": Family(_SPECIAL, _TURNS, _llava_next, _next_processor, {}),
    "idefics3": Family((*_SPECIAL, *_TILES), _TURNS, _idefics3, _idefics3_processor, {}),
    "smolvlm": Family((*_SPECIAL, *_TILES), _TURNS, _smolvlm, _smolvlm_processor, {}),
}
