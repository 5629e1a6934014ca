"""The solver of all closed-form erasers: from moments of text states to a low-rank overlay.

Closed-form erasers edit each layer `W` that reads text states, as unified concept editing does
(arXiv 2308.14761):

    W' M = Σ v*_i c_iᵀ + λ1 Σ W c_p c_pᵀ + λ2 W,   M = Σ c_i c_iᵀ + λ1 Σ c_p c_pᵀ + λ2 I

with `c_i` the concept's states, `v*_i = W c*_i` the layer's output for their replacements `c*_i`,
and `c_p` states to be kept. So `W' = W (I + X M⁻¹)` with `X = Σ (c*_i - c_i) c_iᵀ`: the second
factor is the same for all layers that read the same states, and is solved once for them. Methods
differ in which states they sum over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """Sums over the states of one group of layers, `[in, in]`, float64.

    `erased` is `Σ c_i c_iᵀ`, `kept` `Σ c_p c_pᵀ`, `moved` `Σ (c*_i - c_i) c_iᵀ`.
    """

    erased: Tensor
    kept: Tensor
    moved: Tensor

    @classmethod
    def zeros(cls, width: int) -> Moments:
        """Sums over no states yet, to be added to in place."""
        return cls(*torch.zeros(3, width, width, dtype=torch.float64))

    def erase(self, states: Tensor, stead: Tensor, weights: Tensor | None = None) -> None:
        """Add states `[n, in]` to be mapped to `stead [n, in]`, with `weights [n]`, 1 if None."""
        weighted = states if weights is None else weights[:, None] * states
        self.erased.add_((states.T @ weighted).cpu())
        self.moved.add_(((stead - states).T @ weighted).cpu())

    def keep(self, states: Tensor) -> None:
        """Add states `[n, in]` to be kept."""
        self.kept.add_((states.T @ states).cpu())


@dataclass(frozen=True)
class Edit:
    """An edit `W' = W (I + change)` of the layers of one group, and the second moment `metric` of
    the states it is for, positive definite; both `[in, in]`, float64."""

    change: Tensor
    metric: Tensor


@dataclass(frozen=True)
class Cut:
    """An edit as `lift [in, rank]` times `reads [rank, in]`; `share` of the squared change of the
    states in its metric is kept."""

    lift: Tensor
    reads: Tensor
    share: float


def solved(moments: Moments, *, keep: float, ridge: float) -> Edit:
    """The closed form above; `keep` is λ1, `ridge` λ2."""
    unit = torch.eye(len(moments.erased)).to(moments.erased)
    metric = moments.erased + keep * moments.kept + ridge * unit
    change: Tensor = torch.linalg.solve(metric, moments.moved.T)
    return Edit(change.T, metric)


def low_rank(edit: Edit, rank: int) -> Cut:
    """The nearest change of that rank over states whose second moment is the edit's metric.

    Raises ValueError where there is no change.
    """
    lower = torch.linalg.cholesky(edit.metric)
    # the squared change of states with the second moment L Lᵀ is that of the columns of L
    left, values, right = torch.linalg.svd(edit.change @ lower, full_matrices=False)
    spanned = int((values > 1e-9 * values[0]).sum()) if values[0] > 1e-12 else 0
    if not spanned:
        raise ValueError("the concept's phrases and their replacement are the same")
    used = min(rank, spanned)
    reads = torch.linalg.solve_triangular(lower.T, right[:used].T, upper=True).T
    share = float(values[:used].square().sum() / values.square().sum())
    return Cut(left[:, :used] * values[:used], reads, share)


def gram(weights: Sequence[Tensor]) -> Tensor:
    """`Σ W_lᵀ W_l [in, in]`, float64, over layers `[out, in]` that read the same states."""
    total = sum(weight.double().T @ weight.double() for weight in weights)
    assert isinstance(total, Tensor)
    return total.cpu()
