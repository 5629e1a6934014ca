"""A small LLaVA model of random weights whose tokenizer knows the words of a small benchmark, and a
policy for it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import (
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
    SiglipImageProcessor,
)

from guard.evaluation.mllmu.contestants import Contestant
from guard.models.chat import TransformersChat
from steering.engines.transformers.vision import vision_family
from steering.hidden.rows import RowGuard
from steering.methods.steer import SteerGuard, bank_of

SIDE = 16
DEPTH, WIDTH = 4, 32
_ROLES = ("<system>", "<user>", "<bot>", "<end>", "<image>")
_TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{% endif %}<end>{% endfor %}{% if add_generation_prompt %}<bot>{% endif %}"
)
LETTERS = ("A", "B", "C", "D")
_WORDS = (
    *LETTERS,
    *(f"Town{number}" for number in range(12)),
    *(
        "Paris",
        "two",
        "Person",
        "home",
        "The",
        "in",
        "is",
        "lives",
        "Where",
        "does",
        "this",
        "live",
    ),
    *("person", "Which", "town", "Question", ":", "?", ".", "\n", "[Blank]", "Think", "step", "by"),
    *map(str, range(30)),
)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of words and marks; anything else is unknown to it."""
    names = ("<pad>", "<s>", "</s>", "<unk>", *_WORDS)
    backend = Tokenizer(
        WordLevel({name: i for i, name in enumerate(dict.fromkeys(names))}, unk_token="<unk>")
    )
    backend.pre_tokenizer = Split(" ", "removed")
    backend.add_special_tokens([AddedToken(n, special=True, normalized=False) for n in _ROLES])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        pad_token="<pad>",
        eos_token="</s>",
        padding_side="left",
    )
    tokenizer.chat_template = _TEMPLATE
    return tokenizer


def tiny_model(tokenizer: Any, seed: int = 0) -> LlavaForConditionalGeneration:
    """4 layers of width 32 behind a tower for 16 x 16 pixels: 16 tokens an image."""
    torch.manual_seed(seed)
    config = LlavaConfig(
        vision_config={
            "model_type": "siglip_vision_model",
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": SIDE,
            "patch_size": 4,
            "initializer_range": 0.3,
        },
        text_config={
            "model_type": "llama",
            "vocab_size": len(tokenizer),
            "hidden_size": WIDTH,
            "intermediate_size": 64,
            "num_hidden_layers": DEPTH,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 2048,
            # wide enough that greedy responses vary, and depend on the image
            "initializer_range": 0.3,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
        tie_word_embeddings=False,
    )
    return LlavaForConditionalGeneration(config).eval()


def processor() -> Any:
    return SiglipImageProcessor(size={"height": SIDE, "width": SIDE})


def tiny_chat(seed: int = 0) -> TransformersChat:
    tokenizer = tiny_tokenizer()
    model = tiny_model(tokenizer, seed)
    family = vision_family(model.config, processor(), tokenizer)
    return TransformersChat(model, tokenizer, name="tiny", vision=family)


def save_model(folder: Path) -> None:
    """A folder that `load_language_model` reads."""
    tokenizer = tiny_tokenizer()
    tiny_model(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    processor().save_pretrained(folder)


def steer(name: str = "gone", *, seed: int = 1) -> SteerGuard:
    """A guard that senses after layer 1 and acts after layer 2 on six tokens."""
    draw = torch.Generator().manual_seed(seed)
    return SteerGuard(
        name=name,
        sense_layers=(1,),
        gates=torch.randn(1, WIDTH, generator=draw) / 8,
        act_layers=(2,),
        directions=4 * torch.randn(1, 1, WIDTH, generator=draw).expand(6, 1, WIDTH).contiguous(),
        pool=2,
    )


def guarded(
    chat: TransformersChat, threshold: float, guards: Sequence[SteerGuard] = ()
) -> Contestant:
    """The model under a policy of these guards, one if left out, with that threshold."""
    chosen = tuple(guards) or (steer(),)
    rows = [RowGuard(guard.name, threshold, 1.0) for guard in chosen]
    return Contestant("policy gone", chat, bank_of(chosen), rows, steering=chosen)
