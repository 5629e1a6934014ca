"""The changes of low-rank adapters (LoRA and what is written like it), taken exactly."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from guard.errors import DataError
from guard.fitting.overlays.base import Base, is_served
from guard.fitting.overlays.changes import Change, Difference
from guard.fitting.overlays.factor_names import FactorNames, factor_names, is_kohya, layers_of
from guard.fitting.overlays.weights import Weights
from steering.engines.transformers.adapters.settings import (
    CONFIG,
    WEIGHTS,
    LoraSettings,
    UnfitAdapter,
)
from steering.images.projection import component_of

_METADATA = "lora_adapter_metadata"
"""What diffusers calls PEFT's settings in the header of a file."""


def is_peft(source: Path) -> bool:
    """Whether this is a folder that PEFT has saved, or the file of weights in it."""
    folder = source if source.is_dir() else source.parent
    return (folder / CONFIG).is_file() and (source.is_dir() or source.name == WEIGHTS)


def read_peft(source: Path, base: Base, component: str | None) -> Difference:
    """The difference of an adapter that PEFT has saved. Raises DataError."""
    folder = source if source.is_dir() else source.parent
    try:
        settings = LoraSettings.read(folder)
    except UnfitAdapter as error:
        raise DataError(f"{folder}: {error}") from error
    weights = Weights([folder / WEIGHTS])
    return _read(weights, base, component, dict.fromkeys(base.networks, settings), "PEFT LoRA")


def read_factors(weights: Weights, base: Base, component: str | None) -> Difference:
    """The difference of a file of factors as kohya-ss or diffusers write it. Raises DataError."""
    if any(name.startswith("base_model.model.") for name in weights.names):
        raise DataError(
            f"{weights.label}: is an adapter of PEFT without its {CONFIG}, which has its scale: "
            f"give the folder that has both, with the weights as {WEIGHTS}"
        )
    layout = "kohya LoRA" if is_kohya(weights.names) else "diffusers LoRA"
    return _read(weights, base, component, _settings(weights, base), layout)


def _read(
    weights: Weights,
    base: Base,
    component: str | None,
    settings: Mapping[str, LoraSettings],
    layout: str,
) -> Difference:
    """`settings` by component; where there are none the scale is alpha over rank, or 1."""
    names = factor_names(weights.names, weights.label)
    changes: dict[str, Change] = {}
    dropped: dict[str, list[str]] = {}
    for stem, layer in layers_of(names, base, component, weights.label).items():
        module = base.module(layer)
        if not is_served(module):
            kind = "embeddings" if isinstance(module, nn.Embedding) else "other weights"
            dropped.setdefault(kind, []).append(stem)
            continue
        if layer in changes:
            raise DataError(f"{weights.label}: has two overlays for one layer, {layer}")
        change = _change(weights, stem, names[stem], module, settings.get(component_of(layer)))
        if change is not None:
            changes[layer] = change
    return Difference(layout, changes, dropped)


def _change(
    weights: Weights, stem: str, names: FactorNames, module: nn.Module, of: LoraSettings | None
) -> Change | None:
    """The change of one layer, None where it is zero. Raises DataError for factors that do not fit
    the layer."""
    down, up = weights.tensor(names.down).float(), weights.tensor(names.up).float()
    weight: Tensor = module.weight  # type: ignore[assignment]
    rank = down.shape[0] if down.ndim else 0
    # a convolution of one place and a linear layer are the same
    fits = _trimmed(down.shape[1:]) == _trimmed(weight.shape[1:]) and up.shape[:2] == (
        len(weight),
        rank,
    )
    if not rank or not fits or prod(up.shape[2:]) != 1:
        raise DataError(
            f"{weights.label}: {names.down!r:.120} and {names.up!r:.120} are {list(down.shape)} "
            f"and {list(up.shape)}, which does not fit a layer of {list(weight.shape)}: it is of "
            "another model"
        )
    if of is None:
        scale = 1.0 if names.alpha is None else _alpha(weights, names.alpha) / rank
    elif of.rank_of(stem) == rank:
        scale = of.scale_of(stem)
    else:
        raise DataError(
            f"{weights.label}: {stem!r:.120} has the rank {rank}, and its settings say "
            f"{of.rank_of(stem)}: save the adapter again"
        )
    if not bool(down.any()) or not bool(up.any()) or not scale:
        return None
    return Change(down.reshape(rank, *weight.shape[1:]), scale * up.flatten(1))


def _alpha(weights: Weights, name: str) -> float:
    alpha = weights.tensor(name)
    if alpha.numel() != 1:
        raise DataError(
            f"{weights.label}: {name!r:.120} is {list(alpha.shape)}, where an alpha is one number"
        )
    return float(alpha)


def _trimmed(shape: torch.Size) -> tuple[int, ...]:
    sizes = list(shape)
    while len(sizes) > 1 and sizes[-1] == 1:
        sizes.pop()
    return tuple(sizes)


def _settings(weights: Weights, base: Base) -> dict[str, LoraSettings]:
    """PEFT's settings in the header of a file that diffusers has written, by component."""
    if _METADATA not in weights.metadata:
        return {}
    try:
        fields: Any = json.loads(weights.metadata[_METADATA])
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise DataError(f"{weights.label}: the {_METADATA} in its header is no JSON object")
    by_component: dict[str, dict[str, Any]] = {}
    for key, value in fields.items():
        alias, _, rest = key.partition(".")
        known = alias in base.aliases
        by_component.setdefault(base.aliases[alias] if known else "", {})[
            rest if known else key
        ] = value
    try:
        return {of: LoraSettings.of(settings) for of, settings in by_component.items()}
    except UnfitAdapter as error:
        raise DataError(f"{weights.label}: {error}") from error
