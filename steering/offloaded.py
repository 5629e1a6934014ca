"""Models whose weights are elsewhere until they run, as accelerate offloads them to RAM or disk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn


def weights_of(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Each parameter of the model by name, in that order, fetched one by one where it is offloaded.

    A parameter without values that is nowhere to be found stays on the device "meta". Modules
    that were wrapped by `torch.compile` have the names of those inside.
    """
    parameters = dict(model.named_parameters())
    tied: Mapping[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    for name in sorted(parameters, key=_plain):
        parameter = parameters[name]
        if not parameter.is_meta:
            yield _plain(name), parameter
        # offloading makes two of a tied weight, which else counts once
        elif tied.get(name) not in parameters:
            yield _plain(name), _fetched(model, name, parameter)


def execution_device(model: nn.Module) -> torch.device:
    """The device on which the model runs: that of its first weights that are not offloaded, or
    the one to which they are moved."""
    for module in model.modules():
        for hook in _hooks(module):
            device = getattr(hook, "execution_device", None)
            if device is not None and torch.device(device).type != "meta":
                return torch.device(device)
    return next((p.device for p in model.parameters() if not p.is_meta), torch.device("cpu"))


def _plain(name: str) -> str:
    return name.replace("_orig_mod.", "")


def _fetched(model: nn.Module, name: str, parameter: Tensor) -> Tensor:
    path = name.split(".")
    for depth in range(len(path)):
        for hook in _hooks(model.get_submodule(".".join(path[:depth]))):
            weights = getattr(hook, "weights_map", None)
            try:
                value = None if weights is None else weights[".".join(path[depth:])]
            except KeyError:
                continue
            if isinstance(value, Tensor):
                return value
    return parameter


def _hooks(module: nn.Module) -> list[Any]:
    """The hooks of accelerate on a module."""
    hook = getattr(module, "_hf_hook", None)
    return [] if hook is None else [*getattr(hook, "hooks", [hook])]
