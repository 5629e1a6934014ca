"""Small language models of random weights, and guards for them."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM

from steering.hidden.bank import Tokens
from steering.methods.steer import SteerGuard

LAYERS, WIDTH, VOCABULARY, WINDOW = 4, 32, 97, 8

_BASE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 64,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    # wide enough that greedy responses vary instead of repeating one token
    "initializer_range": 0.3,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_HEAD = {"head_dim": 8}
_SLIDING = {"sliding_window": WINDOW}
_GPT = {
    "vocab_size": VOCABULARY,
    "n_embd": WIDTH,
    "n_layer": LAYERS,
    "n_head": 4,
    "n_positions": 512,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", _BASE),
    "mistral": ("MistralConfig", _BASE | _SLIDING),
    "qwen2": ("Qwen2Config", _BASE),
    "qwen3": ("Qwen3Config", _BASE | _HEAD),
    "gemma": ("GemmaConfig", _BASE | _HEAD),
    "gemma2": ("Gemma2Config", _BASE | _HEAD | _SLIDING),
    "gemma3_text": (
        "Gemma3TextConfig",
        _BASE
        | _HEAD
        | _SLIDING
        | {
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"]
            + ["sliding_attention"]
        },
    ),
    "phi": ("PhiConfig", _BASE),
    "phi3": ("Phi3Config", _BASE | _SLIDING),
    "gpt2": ("GPT2Config", _GPT),
    "gptj": ("GPTJConfig", _GPT | {"rotary_dim": 4}),
}
"""One small configuration for each tested architecture, windows where it has them."""

OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral": ("MixtralConfig", _BASE | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "stablelm": ("StableLmConfig", _BASE),
    "qwen3_next": (
        "Qwen3NextConfig",
        _BASE
        | {
            "initializer_range": 0.1,
            "layer_types": ["linear_attention", "full_attention"] * 2,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 64,
            "shared_expert_intermediate_size": 64,
            # where guards sense no experts, whose choice hangs on the last bit
            "mlp_only_layers": [0, 1, 2],
        },
    ),
}
"""Architectures that only vLLM's tests run."""


def tiny_model(kind: str = "llama", *, seed: int = 0, **changes: Any) -> Any:
    """A causal language model of 4 layers and width 32, float32, in eval mode."""
    name, settings = (CONFIGS | OTHERS)[kind]
    config = getattr(transformers, name)(**(settings | changes))
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config).eval()


def prompt(length: int, seed: int) -> list[int]:
    """Random token ids, none of them special."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, (length,), generator=generator).tolist()


def random_guard(
    name: str = "guard",
    *,
    sense: tuple[int, ...] = (1, 2),
    act: tuple[int, ...] = (2, 3),
    steps: int = 3,
    pool: int = 2,
    seed: int = 0,
    width: int = WIDTH,
    size: float = 3.0,
    tokens: Tokens = "all",
) -> SteerGuard:
    """A guard whose directions are large enough to change the responses of a tiny model."""
    generator = torch.Generator().manual_seed(seed)
    return SteerGuard(
        name=name,
        sense_layers=sense,
        gates=torch.randn(len(sense), width, generator=generator),
        act_layers=act,
        directions=size * torch.randn(steps, len(act), width, generator=generator),
        pool=pool,
        tokens=tokens,
    )
