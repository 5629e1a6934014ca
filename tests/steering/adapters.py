"""LoRA adapters of random weights as PEFT saves them, and models with one merged in."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

PREFIX = "base_model.model."


def save_adapter(
    folder: Path,
    model: Any,
    targets: Sequence[str] = ("q_proj", "v_proj"),
    *,
    rank: int = 4,
    alpha: float = 8,
    seed: int = 0,
    size: float = 0.3,
    **settings: Any,
) -> Path:
    """Write an adapter of every linear layer whose last name is in `targets`."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for path, module in model.named_modules():
        if path.rpartition(".")[2] in targets:
            read = torch.randn(rank, module.in_features, generator=generator)
            write = torch.randn(module.out_features, rank, generator=generator)
            tensors[f"{PREFIX}{path}.lora_A.weight"] = size * read
            tensors[f"{PREFIX}{path}.lora_B.weight"] = size * write
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    save_settings(folder, r=rank, lora_alpha=alpha, target_modules=[*targets], **settings)
    return folder


def save_settings(folder: Path, **settings: Any) -> None:
    settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "bias": "none"} | settings
    (folder / "adapter_config.json").write_text(json.dumps(settings))


def merged(model: Any, folder: Path, scale: float = 2.0) -> Any:
    """A copy of `model` whose weights are `W + scale B A`."""
    model = copy.deepcopy(model)
    tensors = load_file(folder / "adapter_model.safetensors")
    with torch.no_grad():
        for key, read in tensors.items():
            if key.endswith(".lora_A.weight"):
                write = tensors[key.replace("lora_A", "lora_B")]
                path = key.removeprefix(PREFIX).removesuffix(".lora_A.weight")
                weight = model.get_submodule(path).weight
                weight += scale * (write.to(weight.dtype) @ read.to(weight.dtype))
    return model
