"""A tiny Qwen2 in a GGUF file, with a byte-level vocabulary and a chat template."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

WORDS = ["!", '"', "a", "b", "c", "d", "Ġ", "ab", "Ġab", "<|end|>", "<|turn|>", "<|start|>"]
END, TURN, START = (WORDS.index(word) for word in ("<|end|>", "<|turn|>", "<|start|>"))
TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m.content }}<|turn|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>{% endif %}"
)
_NORMAL, _CONTROL = 1, 3


def tiny_qwen(**settings: Any) -> Qwen2ForCausalLM:
    """Random weights, always the same."""
    torch.manual_seed(7)
    config = Qwen2Config(
        **{
            "vocab_size": len(WORDS),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 128,
            "tie_word_embeddings": True,
            **settings,
        }
    )
    return Qwen2ForCausalLM(config).eval()


def write_gguf(
    path: Path,
    model: Qwen2ForCausalLM,
    *,
    architecture: str = "qwen2",
    metadata: Mapping[str, Any] | None = None,
    without: tuple[str, ...] = (),
    tensors: Mapping[str, np.ndarray[Any, Any]] | None = None,
    template: str | None = TEMPLATE,
    split: str = "qwen2",
) -> Path:
    """Write `model` as llama.cpp's converter does; `metadata` and `tensors` come on top."""
    config: Any = model.config
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split)
    writer.add_token_list(WORDS)
    writer.add_token_types([_CONTROL if word.startswith("<|") else _NORMAL for word in WORDS])
    writer.add_token_merges(["a b", "Ġ ab"])
    writer.add_eos_token_id(END)
    if template is not None:
        writer.add_chat_template(template)
    for key, value in (metadata or {}).items():
        add = {bool: writer.add_bool, int: writer.add_uint32, str: writer.add_string}
        add.get(type(value), writer.add_float32)(key, value)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, config.num_hidden_layers)
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        stem, _, kind = name.rpartition(".")
        named = f"{names.get_name(stem)}.{kind}"
        if named not in without:
            writer.add_tensor(named, weight.float().numpy())
    for name, values in (tensors or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
