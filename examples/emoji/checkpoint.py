"""Checkpoints as safetensors: parameters, AdamW's moments, the number of steps."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn


class Average:
    """Exponential moving average of a model's parameters."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.values = {name: p.detach().clone() for name, p in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        # an average of few steps forgets its random start faster
        decay = min(self.decay, (1 + step) / (10 + step))
        parameters = dict(model.named_parameters())
        names = list(self.values)
        torch._foreach_lerp_(
            [self.values[name] for name in names],
            [parameters[name].detach() for name in names],
            1 - decay,
        )


def save(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    step: int,
    average: Average | None = None,
) -> None:
    """Write everything that a resumed run needs, with an atomic rename."""
    tensors: dict[str, Tensor] = {f"model.{k}": v for k, v in model.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": torch.as_tensor(v) for key, v in state.items()}
    if average is not None:
        tensors |= {f"average.{name}": value for name, value in average.values.items()}
    partial = path.with_suffix(".partial")
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, partial, {"step": str(step)})
    os.replace(partial, path)


def resume(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: Average | None = None,
) -> int:
    """Load a checkpoint if there is one; returns the step from which to go on."""
    if not path.exists():
        return 0
    with safe_open(path, "pt") as file:
        step = int(file.metadata()["step"])
        names = file.keys()
        tensors = {name: file.get_tensor(name) for name in names}
    model.load_state_dict(_under(tensors, "model."))
    states: dict[int, dict[str, Tensor]] = {}
    for name, tensor in _under(tensors, "optimizer.").items():
        index, key = name.split(".")
        states.setdefault(int(index), {})[key] = tensor
    whole = optimizer.state_dict()
    optimizer.load_state_dict(whole | {"state": states})
    # the fused kernel walks memory: a moment needs the memory layout of its parameter
    for parameter, state in optimizer.state.items():
        for key, moment in state.items():
            if moment.shape == parameter.shape:
                state[key] = torch.empty_like(parameter).copy_(moment)
    if average is not None:
        average.values = _under(tensors, "average.")
    return step


def averages(path: Path) -> dict[str, Tensor]:
    """The averaged parameters of a checkpoint."""
    with safe_open(path, "pt") as file:
        every = file.keys()
        names = [name for name in every if name.startswith("average.")]
        return {name.removeprefix("average."): file.get_tensor(name) for name in names}


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
