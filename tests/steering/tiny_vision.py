"""Small vision-language models of random weights whose tokens are words, for tests of fits
and of services."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import AutoModelForImageTextToText, PreTrainedTokenizerFast

from steering.engines.transformers.loading.models import LanguageModel
from steering.engines.transformers.vision import vision_family

WORDS = 80
"""Ids 3.. of a tiny tokenizer are the words `w3 w4 ...`; special tokens follow the last one."""
SIDE = 16
"""Pixels of a side of what a tower takes; patches have 4."""

_TEXT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    # wide enough that greedy responses vary, and depend on the image
    "initializer_range": 0.3,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_TOWER: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": 4,
    "initializer_range": 0.3,
}
_TEMPLATE = (
    "{% for message in messages %}<user>{% if message['content'] is string %}"
    "{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}MARKER{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{% endif %}<end>{% endfor %}{% if add_generation_prompt %}<bot>{% endif %}"
)


@dataclass(frozen=True)
class TinyVision:
    """A configuration: of the model, its image processor, and the special tokens."""

    config: str
    settings: dict[str, Any]
    processor: str
    processing: dict[str, Any]
    tokens: tuple[str, ...] = ("<image>",)
    marker: str = "<image>"
    text: str = "llama"


KINDS: dict[str, TinyVision] = {
    "llava": TinyVision(
        "LlavaConfig",
        {
            "vision_config": {"model_type": "clip_vision_model", **_TOWER},
            "vision_feature_select_strategy": "default",
            "vision_feature_layer": -2,
        },
        "CLIPImageProcessor",
        {
            "size": {"shortest_edge": SIDE},
            "crop_size": {"height": SIDE, "width": SIDE},
        },
    ),
}
"""One small configuration for each tested family."""


def tiny_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """A tokenizer of words, special tokens and a chat template."""
    tiny = KINDS[kind]
    words = {"<pad>": 0, "<s>": 1, "</s>": 2} | {f"w{i}": i for i in range(3, WORDS)}
    words |= {"\n": WORDS, "<unk>": WORDS + 1}
    backend = Tokenizer(WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = Split(" ", "removed")
    specials = ("<user>", "<end>", "<bot>", *tiny.tokens)
    backend.add_special_tokens(
        [AddedToken(name, special=True, normalized=False) for name in specials]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", pad_token="<pad>", padding_side="left"
    )
    tokenizer.chat_template = _TEMPLATE.replace("MARKER", tiny.marker)
    return tokenizer


def tiny_vision(kind: str = "llava", *, seed: int = 0, **text: Any) -> LanguageModel:
    """A vision-language model of 4 layers and width 32, float32, in eval mode; `text` are settings
    of its language model."""
    tiny, tokenizer = KINDS[kind], tiny_tokenizer(kind)
    settings = tiny.settings | {
        "text_config": {"model_type": tiny.text, "vocab_size": len(tokenizer), **_TEXT, **text},
        "image_token_id": tokenizer.convert_tokens_to_ids(tiny.tokens[0]),
        "tie_word_embeddings": False,
    }
    config = getattr(transformers, tiny.config)(**settings)
    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_config(config).eval()
    return LanguageModel(model, tokenizer, vision_family(config, tiny_processor(kind), tokenizer))


def tiny_processor(kind: str) -> Any:
    """The image processor of transformers, as it runs without torchvision."""
    tiny = KINDS[kind]
    return getattr(transformers, tiny.processor)(**tiny.processing)


def save(loaded: LanguageModel, kind: str, folder: Path) -> None:
    """A folder that `load_language_model` reads."""
    loaded.model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    tiny_processor(kind).save_pretrained(folder)


def picture(seed: int, height: int = 20, width: int = 24) -> NDArray[np.uint8]:
    """Random pixels, uint8 `[height, width, 3]`."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def chat(*parts: str | NDArray[np.uint8]) -> list[dict[str, Any]]:
    """One user message of texts and images."""
    written = [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {"type": "image", "image": part}
        for part in parts
    ]
    return [{"role": "user", "content": written}]
