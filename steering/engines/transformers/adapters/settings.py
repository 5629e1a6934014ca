"""The settings of a LoRA adapter, as PEFT saves them: `adapter_config.json`. Needs no torch.

Its fields are those of `peft.LoraConfig`. One that is set and not known here is refused by name: it
may change what the adapter computes.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MAX_RANK = 512
MAX_CONFIG_BYTES = 2**20

_READ = {
    *("peft_type", "r", "lora_alpha", "use_rslora", "target_modules"),
    *("rank_pattern", "alpha_pattern", "bias", "init_lora_weights"),
}
_WITHOUT_EFFECT = {
    # of training, or of where the adapter came from
    *("auto_mapping", "base_model_name_or_path", "revision", "peft_version", "task_type"),
    *("inference_mode", "lora_dropout", "loftq_config", "eva_config", "corda_config"),
    *("lora_ga_config", "runtime_config", "ensure_weight_tying"),
    # which layers have weights is what the file of weights says
    *("layers_to_transform", "layers_pattern", "exclude_modules"),
    # defaults of variants, which have switches of their own
    *("megatron_core", "qalora_group_size"),
}
_KEEP_THE_BASE = (True, False, "gaussian", "eva", "orthogonal")
"""Initialisations that leave the weights of the model as they are; PiSSA and others do not."""


class UnfitAdapter(ValueError):
    """The adapter is not one that rows can carry."""


@dataclass(frozen=True)
class LoraSettings:
    """What scales the two factors of a layer, and which layers have them. `targets` is a list of
    names that paths end with, or a regular expression of whole paths."""

    rank: int
    alpha: float
    rank_stabilised: bool
    targets: tuple[str, ...] | str
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The settings of the adapter in `folder`. Raises UnfitAdapter, in one line."""
        return cls.of(_fields(folder))

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Self:
        """The settings of an adapter by their names in PEFT. Raises UnfitAdapter, in one line."""
        if (kind := fields.get("peft_type")) != "LORA":
            raise UnfitAdapter(f"is of the type {kind!r:.40}: only LORA adapters are served")
        if (bias := fields.get("bias", "none")) != "none":
            raise UnfitAdapter(f"has trained biases (bias = {bias!r:.40}), which are not supported")
        start = fields.get("init_lora_weights", True)
        if start is not None and start not in _KEEP_THE_BASE:
            raise UnfitAdapter(
                f"was begun with {start!r:.40}, which changes the weights of the model too: "
                "convert it to a plain LoRA with PEFT's path_initial_model_for_weight_conversion"
            )
        for name, value in fields.items():
            if value and name not in _READ | _WITHOUT_EFFECT:
                raise UnfitAdapter(
                    f"has {name!r:.60} set, which is not supported: train it without"
                )
        return cls(
            rank=_rank(fields.get("r", 8)),
            alpha=_alpha(fields.get("lora_alpha", 8)),
            rank_stabilised=fields.get("use_rslora") is True,
            targets=_targets(fields.get("target_modules")),
            ranks=_by_pattern(fields, "rank_pattern", _rank),
            alphas=_by_pattern(fields, "alpha_pattern", _alpha),
        )

    def rank_of(self, path: str) -> int:
        """The rank of the factors of the layer at `path` in the model."""
        return _chosen(self.ranks, path, self.rank)

    def scale_of(self, path: str) -> float:
        """What the product of the factors is multiplied by."""
        rank = self.rank_of(path)
        alpha = _chosen(self.alphas, path, self.alpha)
        return alpha / (math.sqrt(rank) if self.rank_stabilised else rank)

    def targets_layer(self, path: str) -> bool:
        """Whether the layer at `path` has factors."""
        if isinstance(self.targets, str):
            return self.targets == "all-linear" or bool(re.fullmatch(self.targets, path))
        return any(f".{path}".endswith(f".{name}") for name in self.targets)


def _fields(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    try:
        with path.open("rb") as file:
            text = file.read(MAX_CONFIG_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UnfitAdapter(
            f"{path} cannot be read: {reason}: name the folder of a PEFT adapter"
        ) from None
    if len(text) > MAX_CONFIG_BYTES:
        raise UnfitAdapter(
            f"{path} is larger than {MAX_CONFIG_BYTES} bytes: not the settings of one"
        )
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise UnfitAdapter(f"{path} is not a JSON object: save the adapter again")
    if not (folder / WEIGHTS).is_file():
        raise UnfitAdapter(
            f"{folder} has no {WEIGHTS}: save the adapter with safe_serialization=True "
            "(pickles are not read)"
        )
    return fields


def _rank(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_RANK:
        raise UnfitAdapter(f"has the rank {value!r:.40}: it must be a number from 1 to {MAX_RANK}")
    return value


def _alpha(value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise UnfitAdapter(f"has the lora_alpha {value!r:.40}, which is not a number")
    return float(value)


def _targets(value: Any) -> tuple[str, ...] | str:
    if isinstance(value, str) and value:
        _require_expression("target_modules", value)
        return value
    if isinstance(value, list) and value and all(isinstance(name, str) and name for name in value):
        return tuple(value)
    raise UnfitAdapter("has no target_modules: they name the linear layers that it changes")


T = TypeVar("T", int, float)


def _by_pattern(fields: Mapping[str, Any], name: str, read: Any) -> dict[str, Any]:
    patterns = fields.get(name) or {}
    if not isinstance(patterns, dict):
        raise UnfitAdapter(f"has a {name} that is not an object")
    for pattern in patterns:
        _require_expression(name, pattern)
    return {pattern: read(value) for pattern, value in patterns.items()}


def _require_expression(name: str, text: str) -> None:
    try:
        re.compile(text)
    except (re.error, RecursionError, OverflowError):
        raise UnfitAdapter(f"has a {name} with an invalid expression, {text!r:.60}") from None


def _chosen(patterns: Mapping[str, T], path: str, default: T) -> T:
    """The value of the first pattern that the end of `path` matches."""
    matching = (p for p in patterns if re.match(rf"(?:.*\.)?(?:{p})$", path))
    pattern = next(matching, None)
    return default if pattern is None else patterns[pattern]
