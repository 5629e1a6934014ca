"""Uphill steps in the metric that leaves what is kept alone, as K-FADE takes (arXiv 2602.10568).

One step is `ΔW = η B⁻¹ G A⁻¹` for each layer, with `G` the gradient of -log p of the answers to
forget, and `A = E[x xᵀ]`, `B = E[δ δᵀ]` of the layer's inputs and of the gradients at its outputs
on what is to be kept (K-FAC, Martens and Grosse, arXiv 1503.05671), damped. Labels for `δ` are
drawn from the model, so that `B` is of the Fisher matrix. The metric knows nothing of what layers
and tokens do together, so that η is chosen by the divergence on what is kept as it is measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from examples.erasers.data import Batch
from examples.erasers.differences import Differences
from examples.erasers.forwards import Forwards, divergence

DAMPING = 0.5
"""Of both factors, as a share of their mean eigenvalue."""
LOOKS = 10
"""The most measurements of the divergence in a step."""


class Factors:
    """Sums of `x xᵀ` and `δ δᵀ` of linear layers over the tokens of batches. Padding has no part in
    them: its `δ` is zero, its `x` is left out."""

    def __init__(self, linears: Sequence[nn.Linear]) -> None:
        self.inputs = [torch.zeros(each.in_features, each.in_features) for each in linears]
        self.outputs = [torch.zeros(each.out_features, each.out_features) for each in linears]
        self.tokens = 0
        self._real: Tensor | None = None
        self._handles = [
            each.register_forward_hook(partial(self._read, i)) for i, each in enumerate(linears)
        ]

    def begin(self, batch: Batch) -> None:
        """Read the forward of this batch next."""
        self._real = batch.real
        self.tokens += int(batch.real.sum())

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _read(self, i: int, _module: Any, inputs: Any, output: Tensor) -> None:
        assert self._real is not None
        x = inputs[0].detach()[self._real]
        self.inputs[i] += x.T @ x
        output.register_hook(partial(self._back, i))

    def _back(self, i: int, gradient: Tensor) -> None:
        delta = gradient.flatten(0, -2)
        self.outputs[i] += delta.T @ delta


def step(
    model: Forwards,
    differences: Differences,
    forget: Sequence[Batch],
    retain: Sequence[Batch],
    reach: float,
) -> float:
    """Take one step by which the divergence on `retain` grows by `reach` nats a token; returns the
    -log p of a token that is to be forgotten, before it."""
    factors = Factors(differences.linears)
    generator = torch.Generator().manual_seed(0)
    tokens = 0
    for batch in retain:
        factors.begin(batch)
        every, _ = model.log_probabilities(batch)
        labels = torch.multinomial(every.detach().exp(), 1, generator=generator)
        (-every.gather(-1, labels).sum()).backward()
        tokens += len(every)
    factors.remove()
    differences.module.zero_grad()
    loss = 0.0
    for batch in forget:
        _, chosen = model.log_probabilities(batch)
        (-chosen.mean() / len(forget)).backward()
        loss -= float(chosen.detach().mean()) / len(forget)
    changes = []
    for i, each in enumerate(differences.by_path.values()):
        a, b = factors.inputs[i] / factors.tokens, factors.outputs[i] / tokens
        assert each.full.grad is not None
        change = torch.linalg.solve(_damped(b), each.full.grad)
        changes.append(torch.linalg.solve(_damped(a), change.T).T)
    differences.module.zero_grad()
    _go(model, differences, changes, retain, reach)
    return loss


@torch.no_grad()
def _go(
    model: Forwards,
    differences: Differences,
    changes: Sequence[Tensor],
    retain: Sequence[Batch],
    reach: float,
) -> None:
    """Go along `changes` until the divergence has grown by `reach`: near the start, that is a
    square of the way."""
    layers = [each.full for each in differences.by_path.values()]
    starts = [each.clone() for each in layers]

    def measured() -> float:
        return sum(float(divergence(model, batch)) for batch in retain) / len(retain)

    before = measured()
    size = sum(float(each.square().sum()) for each in changes) ** 0.5
    way = 1e-2 / size
    for _ in range(LOOKS):
        for each, start, change in zip(layers, starts, changes, strict=True):
            each.copy_(start + way * change)
        grown = measured() - before
        if abs(grown - reach) < 0.1 * reach:
            break
        # no farther than it may be believed
        way *= min(max((reach / max(grown, 1e-9)) ** 0.5, 0.2), 5.0)


def _damped(moment: Tensor) -> Tensor:
    return moment + DAMPING * moment.diagonal().mean() * torch.eye(len(moment))
