"""The factors of a LoRA adapter, from its file of weights, checked against the model's layers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from steering.engines.transformers.adapters.settings import WEIGHTS, LoraSettings, UnfitAdapter
from steering.engines.transformers.layers import decoder_layers
from steering.hidden.overlays import LowRank

_KEY = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")
_DTYPES = {"F64", "F32", "F16", "BF16"}


def decoder_linears(model: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers inside the decoder layers of `model`, by their paths in it."""
    inside = {id(module) for module in decoder_layers(model).modules()}
    return {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and id(module) in inside
    }


def linear_shapes(model: nn.Module) -> dict[str, tuple[int, int]]:
    """(out, in) of the layers of `decoder_linears`, whose weights may be packed."""
    return {
        path: (linear.out_features, linear.in_features)
        for path, linear in decoder_linears(model).items()
    }


def read_adapter(
    folder: Path, linears: Mapping[str, nn.Linear], dtype: torch.dtype
) -> dict[str, LowRank]:
    """The factors of the adapter in `folder` by layer, each the path of one of `linears`.

    Raises UnfitAdapter, in one line, for what PEFT saves and is not supported here, factors that do
    not fit their layer, and values that are not finite.
    """
    settings = LoraSettings.read(folder)
    try:
        with safe_open(folder / WEIGHTS, "pt") as file:
            keys = _keys(file, settings, linears)
            return {
                path: _low_rank(path, file, names, settings.scale_of(path), dtype)
                for path, names in keys.items()
            }
    except (SafetensorError, OSError) as error:
        raise UnfitAdapter(f"{folder / WEIGHTS} cannot be read: {error}") from None


def _keys(
    file: Any, settings: LoraSettings, linears: Mapping[str, nn.Linear]
) -> dict[str, tuple[str, str]]:
    """Layer → the keys of its factors `A` and `B`, of the right shapes."""
    found: dict[str, dict[str, str]] = {}
    for key in file.keys():  # noqa: SIM118  # the file is no mapping
        match = _KEY.fullmatch(key)
        if match is None:
            raise UnfitAdapter(f"has the weight {key!r:.120}, which is no factor of a linear layer")
        found.setdefault(match[1], {})[match[2]] = key
    if not found:
        raise UnfitAdapter("has no weights")
    for path, factors in found.items():
        if path not in linears:
            raise UnfitAdapter(
                f"changes {path!r:.120}, which is no linear layer in this model's decoder layers: "
                "it is of another model, or changes what adapters cannot change here"
            )
        if not settings.targets_layer(path):
            raise UnfitAdapter(f"has weights for {path!r}, which its target_modules do not name")
        rank, linear = settings.rank_of(path), linears[path]
        wanted = {"A": [rank, linear.in_features], "B": [linear.out_features, rank]}
        for factor, shape in wanted.items():
            if (name := factors.get(factor)) is None:
                raise UnfitAdapter(f"lacks the factor {factor} of {path!r}: save it again")
            part = file.get_slice(name)
            if part.get_shape() != shape or part.get_dtype() not in _DTYPES:
                raise UnfitAdapter(
                    f"has {part.get_dtype()} {part.get_shape()} as factor {factor} of {path!r}, "
                    f"where floating-point {shape} fits this model and the rank of its settings"
                )
    if isinstance(settings.targets, tuple):
        for name in settings.targets:
            if not any(f".{path}".endswith(f".{name}") for path in found):
                raise UnfitAdapter(f"has no weights for {name!r:.60} of its target_modules")
    return {path: (factors["A"], factors["B"]) for path, factors in found.items()}


def _low_rank(
    path: str, file: Any, names: tuple[str, str], scale: float, dtype: torch.dtype
) -> LowRank:
    read, write = (file.get_tensor(name).to(dtype) for name in names)
    write = write * scale
    if not (read.isfinite().all() and write.isfinite().all()):
        raise UnfitAdapter(f"has NaN or infinity in the factors of {path!r}")
    return LowRank(read, write)
