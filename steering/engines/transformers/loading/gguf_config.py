"""What a GGUF file says of a model and transformers leaves out of its configuration.

Keys: the GGUF specification (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md) and
llama.cpp's converters.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.integrations.gguf.reader import GgufHeader, load_gguf_state_dict
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

_LLAMA3 = "rope_freqs.weight"
_SHORT, _LONG = "rope_factors_short.weight", "rope_factors_long.weight"
FREQUENCIES = frozenset({_LLAMA3, _SHORT, _LONG})
"""Tensors that are no weights: by what the frequencies of positions are divided."""
_LLAMA3_SETTINGS = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
"""Those of Llama 3.1 to 3.3, which their files do not say; the factors must agree with them."""


def completed(
    config: Any, metadata: Mapping[str, Any], tensors: Collection[str], path: Path
) -> Any:
    """The configuration of a GGUF file's model, with what transformers has not read of `metadata`
    and of the file's `tensors`, by name. Raises ValueError for what it cannot express."""

    def of_model(key: str) -> Any:
        return metadata.get(f"{metadata['general.architecture']}.{key}")

    entries = config.to_dict()
    heads = of_model("attention.key_length")
    if heads and "head_dim" in entries and config.model_type != "gemma4_text":
        entries["head_dim"] = heads
    for key, tensor in (("attention_bias", "attn_q.bias"), ("mlp_bias", "ffn_gate.bias")):
        if key in entries:
            entries[key] = f"blk.0.{tensor}" in tensors
    window = of_model("attention.sliding_window")
    if window and not entries.get("sliding_window"):
        if "sliding_window" in entries:
            entries["sliding_window"] = window
        else:
            # within the window full attention is the same
            entries["max_position_embeddings"] = min(entries["max_position_embeddings"], window)
    made = type(config).from_dict(entries)
    if getattr(made, "rope_parameters", None):
        _rotate(made, of_model, tensors, path)
    return made


def _rotate(config: Any, of_model: Any, tensors: Collection[str], path: Path) -> None:
    nested = "full_attention" in config.rope_parameters
    rope = config.rope_parameters["full_attention"] if nested else config.rope_parameters
    local = of_model("rope.freq_base_swa")
    if nested and local:
        config.rope_parameters["sliding_attention"]["rope_theta"] = local
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rotated = of_model("rope.dimension_count")
    if rotated and rotated < width and not nested:
        rope["partial_rotary_factor"] = rotated / width
    rope |= _scaling(config, of_model, tensors, path)
    if _LLAMA3 in tensors:
        rope |= _llama3(config, rope, _read(path, _LLAMA3))


def _scaling(config: Any, of_model: Any, tensors: Collection[str], path: Path) -> dict[str, Any]:
    kind = of_model("rope.scaling.type") or ("longrope" if _LONG in tensors else "none")
    factor = of_model("rope.scaling.factor") or of_model("rope.scale_linear") or 1.0
    original = of_model("rope.scaling.original_context_length")
    if kind == "longrope":
        if _LONG not in tensors or _SHORT not in tensors or not original:
            raise ValueError("the GGUF file scales positions by 'longrope' without its factors")
        short, long = _read(path, _SHORT), _read(path, _LONG)
        config.original_max_position_embeddings = original
        return {
            "rope_type": "longrope",
            "short_factor": short.tolist(),
            "long_factor": long.tolist(),
            "original_max_position_embeddings": original,
            "attention_factor": of_model("rope.scaling.attn_factor") or 1.0,
        }
    if kind == "linear" or (kind == "none" and factor != 1.0):
        return {} if factor == 1.0 else {"rope_type": "linear", "factor": factor}
    if kind == "none":
        return {}
    if kind != "yarn":
        raise ValueError(f"the GGUF file scales positions by {kind!r}, which is not read")
    more = of_model("rope.scaling.attn_factor")
    if more not in {None, 1.0}:
        raise ValueError(
            f"the GGUF file scales attention by {more} under 'yarn', which is not read"
        )
    scaling = {"rope_type": "yarn", "factor": factor}
    if original:
        scaling["original_max_position_embeddings"] = original
    for theirs, ours in (("yarn_beta_fast", "beta_fast"), ("yarn_beta_slow", "beta_slow")):
        if value := of_model(f"rope.scaling.{theirs}"):
            scaling[ours] = value
    return scaling


def _llama3(config: Any, rope: Mapping[str, Any], divisors: Tensor) -> dict[str, Any]:
    """The scaling of Llama 3 whose frequencies are divided by `divisors`."""
    factor = float(divisors.max())
    if factor == 1.0:
        return {}
    scaling = {"rope_type": "llama3", "factor": factor, **_LLAMA3_SETTINGS}
    trial = type(config).from_dict(config.to_dict() | {"rope_parameters": {**rope, **scaling}})
    frequencies, _ = ROPE_INIT_FUNCTIONS["llama3"](trial, torch.device("cpu"))
    width = 2 * len(divisors)
    plain = 1.0 / rope["rope_theta"] ** (torch.arange(0, width, 2, dtype=torch.float32) / width)
    if len(frequencies) != len(divisors) or not torch.allclose(
        plain / frequencies, divisors, rtol=1e-3
    ):
        raise ValueError(
            f"the GGUF file scales positions by factors ({_LLAMA3}) that are not those of Llama 3"
        )
    return scaling


def _read(path: Path, tensor: str) -> Tensor:
    read: Tensor = load_gguf_state_dict(GgufHeader.from_file(str(path)))[tensor][...]
    return read.float()
