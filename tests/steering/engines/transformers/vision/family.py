"""How a family of vision-language models is made small."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from transformers import ProcessorMixin

LAYERS, WIDTH, WINDOW = 4, 32, 8

TEXT: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 64,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 2048,
    # wide enough that greedy responses vary instead of repeating one token
    "initializer_range": 0.3,
}


@dataclass(frozen=True)
class Family:
    """One family: how its model, tokenizer and processor are made small.

    `config(ids)` has the ids of the special tokens by name; `processor(tokenizer)` is the family's
    own, without video.
    """

    special: tuple[str, ...]
    template: str
    config: Callable[[Mapping[str, int]], Any]
    processor: Callable[[Any], ProcessorMixin]
    names: Mapping[str, str]
    """Attributes of the tokenizer, by name: what the processor looks for."""
