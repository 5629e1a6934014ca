"""Overlays that are trained: low-rank factors on chosen layers, while the weights stay frozen."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from guard.errors import DataError
from guard.fitting.overlays.base import Base, is_served
from guard.fitting.overlays.factors import Factors


@dataclass(frozen=True)
class Training:
    """Settings of Adam: `rate` is that of the factors, which begin at a change of zero."""

    rank: int = 8
    steps: int = 100
    rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.98)
    seed: int = 0


class Deltas:
    """Trainable factors `ΔW = write · read` of layers of a base.

    They act only inside `on`; outside it the base's outputs are its own. `read` begins as noise,
    `write` at zero, as in LoRA (arXiv 2106.09685).
    """

    def __init__(self, base: Base, layers: Sequence[str], training: Training) -> None:
        self._modules = {layer: base.module(layer) for layer in layers}
        unfit = next((name for name, m in self._modules.items() if not is_served(m)), None)
        if unfit is not None or not layers:
            raise DataError(f"no overlay can be trained on {unfit or 'no layer'}")
        generator = torch.Generator().manual_seed(training.seed)
        self._read, self._write = {}, {}
        for layer, module in self._modules.items():
            weight: Tensor = module.weight  # type: ignore[assignment]
            rank = min(training.rank, len(weight), weight[0].numel())
            read = torch.randn(rank, *weight.shape[1:], generator=generator)
            read /= math.sqrt(weight[0].numel())
            self._read[layer] = read.to(weight.device).requires_grad_()
            self._write[layer] = torch.zeros(len(weight), rank, device=weight.device)
            self._write[layer].requires_grad_()

    @property
    def parameters(self) -> list[Tensor]:
        return [*self._read.values(), *self._write.values()]

    @contextmanager
    def on(self) -> Iterator[None]:
        """Add the changes to the outputs of the layers inside the context."""
        with ExitStack() as stack:
            for layer, module in self._modules.items():
                stack.callback(module.register_forward_hook(self._hook(layer)).remove)
            yield

    def factors(self) -> Factors:
        """The factors as they are now; layers whose change is zero are left out.

        Raises DataError where all are, or where one is not finite.
        """
        changed = [layer for layer, write in self._write.items() if bool(write.any())]
        tensors = [
            tensor for layer in changed for tensor in (self._read[layer], self._write[layer])
        ]
        if not changed or not all(bool(tensor.isfinite().all()) for tensor in tensors):
            what = "has left every weight as it was" if not changed else "has met NaN"
            raise DataError(f"the training {what}: try another rate or more steps")
        return Factors(
            {layer: self._read[layer].detach().cpu() for layer in changed},
            {layer: self._write[layer].detach().cpu().T.contiguous() for layer in changed},
        )

    def _hook(self, layer: str) -> Any:
        def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            read, write = self._read[layer], self._write[layer]
            states = inputs[0].float()
            if isinstance(module, nn.Conv2d):
                shape = (module.stride, module.padding, module.dilation)
                read_states = F.conv2d(states, read, None, *shape)  # type: ignore[arg-type]
                change = F.conv2d(read_states, write[..., None, None])
            else:
                change = F.linear(F.linear(states, read), write)
            return (output.float() + change).to(output.dtype)

        return add


def train(
    deltas: Deltas,
    loss: Callable[[int], Tensor],
    training: Training,
    advance: Callable[[int], None] = lambda _steps: None,
) -> list[float]:
    """Minimise `loss` of the step's number, a scalar, with Adam over the factors: the losses.

    The weights of the base must not require gradients (`guard.evaluation.m_erasure.learned_words`
    has `frozen`). Raises DataError for a loss that is not finite.
    """
    optimiser = torch.optim.Adam(deltas.parameters, lr=training.rate, betas=training.betas)
    losses = []
    with torch.enable_grad():
        for step in range(training.steps):
            value = loss(step)
            if not bool(value.isfinite()):
                raise DataError(f"the loss of step {step + 1} is not finite: try a lower rate")
            gradients = torch.autograd.grad(value, deltas.parameters, allow_unused=True)
            for parameter, gradient in zip(deltas.parameters, gradients, strict=True):
                parameter.grad = gradient
            optimiser.step()
            losses.append(float(value.detach()))
            advance(1)
    return losses
