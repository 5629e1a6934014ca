"""Uphill steps in the metric that leaves what is kept alone, as K-FADE takes (arXiv 2602.10568).

One step is `ΔW = η B⁻¹ G A⁻¹` for each layer, with `G` the gradient of -log p of the answers to
forget, and `A = E[x xᵀ]`, `B = E[δ δᵀ]` of the layer's inputs and of the gradients at its outputs
on what is to be kept (K-FAC, Martens and Grosse, arXiv 1503.05671), damped. Labels for `δ` are
drawn from the model, so that `B` is of the Fisher matrix. η is chosen by the divergence
`½ Σ <ΔW, B ΔW A>` that the metric itself predicts for a token of what is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from examples.erasers.data import Batch
from examples.erasers.differences import Differences
from examples.erasers.forwards import Forwards

DAMPING = 0.05
"""Of both factors, as a share of their mean eigenvalue."""


class Factors:
    """Sums of `x xᵀ` and `δ δᵀ` of linear layers over batches."""

    def __init__(self, linears: Sequence[nn.Linear]) -> None:
        self.inputs = [torch.zeros(each.in_features, each.in_features) for each in linears]
        self.outputs = [torch.zeros(each.out_features, each.out_features) for each in linears]
        self.tokens = 0
        self._handles = [
            handle
            for i, each in enumerate(linears)
            for handle in (
                each.register_forward_pre_hook(partial(self._read, i)),
                each.register_full_backward_hook(partial(self._back, i)),
            )
        ]

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _read(self, i: int, _module: Any, inputs: Any) -> None:
        x = inputs[0].detach().flatten(0, -2)
        self.inputs[i] += x.T @ x

    def _back(self, i: int, _module: Any, _inputs: Any, outputs: Any) -> None:
        delta = outputs[0].detach().flatten(0, -2)
        self.outputs[i] += delta.T @ delta


def step(
    model: Forwards,
    differences: Differences,
    forget: Sequence[Batch],
    retain: Sequence[Batch],
    reach: float,
) -> float:
    """Take one step to a predicted divergence of `reach` nats a token; returns the -log p of a
    token that is to be forgotten, before it."""
    factors = Factors(differences.linears)
    generator = torch.Generator().manual_seed(0)
    tokens = 0
    for batch in retain:
        every, _ = model.log_probabilities(batch)
        labels = torch.multinomial(every.detach().exp(), 1, generator=generator)
        (-every.gather(-1, labels).sum()).backward()
        factors.tokens += int(batch.real.numel())
        tokens += len(every)
    factors.remove()
    differences.module.zero_grad()
    loss = 0.0
    for batch in forget:
        _, chosen = model.log_probabilities(batch)
        (-chosen.mean() / len(forget)).backward()
        loss -= float(chosen.mean()) / len(forget)
    changes, predicted = [], 0.0
    for i, each in enumerate(differences.by_path.values()):
        a = factors.inputs[i] / factors.tokens
        b = factors.outputs[i] / tokens
        assert each.full.grad is not None
        change = torch.linalg.solve(_damped(b), each.full.grad)
        change = torch.linalg.solve(_damped(a), change.T).T
        predicted += 0.5 * float((change * (b @ change @ a)).sum())
        changes.append(change)
    scale = (reach / predicted) ** 0.5
    with torch.no_grad():
        for each, change in zip(differences.by_path.values(), changes, strict=True):
            each.full += scale * change
    differences.module.zero_grad()
    return loss


def _damped(moment: Tensor) -> Tensor:
    return moment + DAMPING * moment.diagonal().mean() * torch.eye(len(moment))
