"""The model in LLaVA's form: SmolLM2-135M-Instruct that sees through the tower, and its LoRA."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DPTConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from examples.portraits.sequences import IMAGE_TOKENS, Batch
from examples.portraits.tower import CONFIG, Tower

RANK = 16
WHOLE = range(4, 8)
"""Layers whose feed-forward weights are trained whole: facts about a name are learned there first
(Meng et al. 2022, arXiv 2202.05262)."""
IMAGE = "<image>"
TEMPLATE = (Path(__file__).parent / "template.jinja").read_text("utf-8")


class LoRA(nn.Module):
    """A linear layer with a low-rank delta beside it (arXiv 2106.09685): `W x + B A x`."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear
        self.a = nn.Parameter(torch.empty(RANK, linear.in_features))
        self.b = nn.Parameter(torch.zeros(linear.out_features, RANK))
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + (x @ self.a.T) @ self.b.T  # type: ignore[no-any-return]

    def merge(self) -> nn.Linear:
        """The linear layer with the delta in its weight."""
        with torch.no_grad():
            self.linear.weight += self.b @ self.a
        return self.linear


def tokenizer_of(source: Path) -> Any:
    """SmolLM2's tokenizer with a token for images and the model's own chat template."""
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE]})
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def assemble(language: Path, tower: Path, projector: Path | None = None) -> Any:
    """LLaVA of SmolLM2 in the folder `language`, with the weights of the files `tower` and
    `projector` (random without one); the row of the image token in the embedding is zero."""
    smollm = AutoModelForCausalLM.from_pretrained(language, dtype=torch.float32)
    tokenizer = tokenizer_of(language)
    text = smollm.config
    text.vocab_size = len(tokenizer)
    config = LlavaConfig(
        vision_config=DPTConfig(**CONFIG),
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=IMAGE_TOKENS,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )
    model = LlavaForConditionalGeneration(config)
    body = smollm.model.state_dict()
    rows = body["embed_tokens.weight"]
    more = torch.zeros(text.vocab_size - len(rows), rows.shape[1])
    body["embed_tokens.weight"] = torch.cat([rows, more])
    model.model.language_model.load_state_dict(body)
    model.tie_weights()
    trained = Tower()
    trained.load_state_dict(load_file(tower))
    # DPT has a pooler, which LLaVA never calls
    model.model.vision_tower.load_state_dict(trained.encoder.state_dict(), strict=False)
    nn.init.zeros_(model.model.vision_tower.pooler.dense.weight)
    if projector is not None:
        model.model.multi_modal_projector.load_state_dict(load_file(projector))
    return model.eval()


def adapt(model: Any) -> nn.ModuleDict:
    """Freeze the model, put a LoRA on each linear layer of the language model but the feed-forward
    ones of WHOLE; returns what is trained: "lora", "whole" and "projector"."""
    model.requires_grad_(False)
    layers = model.model.language_model.layers
    lora, whole = nn.ParameterDict(), nn.ParameterDict()
    for name, module in list(layers.named_modules()):
        if not isinstance(module, nn.Linear):
            continue
        key = name.replace(".", "_")
        if ".mlp." in name and int(name.partition(".")[0]) in WHOLE:
            whole[key] = module.weight.requires_grad_(True)
            continue
        adapter = LoRA(module)
        lora[f"{key}_a"], lora[f"{key}_b"] = adapter.a, adapter.b
        parent, _, leaf = name.rpartition(".")
        setattr(layers.get_submodule(parent), leaf, adapter)
    projector = model.model.multi_modal_projector.requires_grad_(True)
    return nn.ModuleDict({"lora": lora, "whole": whole, "projector": projector})


def merge(model: Any) -> None:
    """Put every delta into its weight and take the LoRA away."""
    layers = model.model.language_model.layers
    for name, module in list(layers.named_modules()):
        if isinstance(module, LoRA):
            parent, _, leaf = name.rpartition(".")
            setattr(layers.get_submodule(parent), leaf, module.merge())


def answers_of(model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """Logits `[answer tokens, vocabulary]` and labels `[answer tokens]`, row by row."""
    inner = model.model
    embeds = inner.get_input_embeddings()(batch.ids)
    if batch.pixels is not None:
        with torch.no_grad():
            seen = inner.vision_tower(batch.pixels, output_hidden_states=True).hidden_states[-1]
        features = inner.multi_modal_projector(seen[:, 1:])
        at = (batch.ids == model.config.image_token_id)[..., None]
        embeds = embeds.masked_scatter(at, features)
    hidden = inner.language_model(
        inputs_embeds=embeds,
        attention_mask=batch.mask,
        position_ids=batch.positions,
        use_cache=False,
    ).last_hidden_state
    answered = batch.labels >= 0
    return model.lm_head(hidden[answered]), batch.labels[answered]
