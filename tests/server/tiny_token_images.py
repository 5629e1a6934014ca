"""A language model of random weights that writes images of 3 x 4 tokens, and guards for it."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from guard.artifact import Artifact
from steering.engines.diffusion.patch_autoencoder import PatchAutoencoder
from steering.engines.transformers.image_tokens import AUTOENCODER, CODEBOOK, IMAGE_TOKENS
from steering.fingerprint import fingerprint
from tests.server.tiny_text_service import (
    ALWAYS,
    LAYERS,
    NAN_LETTER,
    NEVER,
    WIDTH,
    steer_meta,
    steer_tensors,
    tokenizer,
)

ROWS, COLUMNS, CODES, LONGEST = 3, 4, 40, 24
SETTINGS = {"rows": ROWS, "columns": COLUMNS, "temperature": 1.0, "top_p": 0.95}


def save_model(folder: Path, longest: int = LONGEST) -> LlamaForCausalLM:
    """Write the model, its tokenizer, autoencoder and codebook; `longest` is the most tokens of a
    prompt."""
    words = tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(words) + CODES,
        hidden_size=WIDTH,
        intermediate_size=64,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=longest + ROWS * COLUMNS,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        model.get_input_embeddings().weight[words.convert_tokens_to_ids(NAN_LETTER)] = torch.nan
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    autoencoder = PatchAutoencoder(
        width=8, blocks=1, latent_channels=2, block_out_channels=(8, 8, 8)
    )
    autoencoder.save_pretrained(folder / AUTOENCODER)
    save_file({"codes": 3 * torch.randn(CODES, 2)}, folder / AUTOENCODER / CODEBOOK)
    (folder / IMAGE_TOKENS).write_text(json.dumps(SETTINGS))
    return model


def save_guards(folder: Path, model: LlamaForCausalLM) -> None:
    """Write guards that always and never fire."""
    of = fingerprint(model)
    for name, threshold in (("always", ALWAYS), ("never", NEVER)):
        meta = steer_meta(of, threshold=threshold)
        Artifact(meta, steer_tensors()).save(folder / f"{name}.safetensors")
