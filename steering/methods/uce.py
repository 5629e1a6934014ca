"""Unified concept editing (arXiv 2308.14761) as an overlay, at the projection seam.

The closed form for a layer `W` that reads text states, its terms weighted:

    W' M = Σ v*_i c_iᵀ + λ1 Σ W c_p c_pᵀ + λ2 W,   M = Σ c_i c_iᵀ + λ1 Σ c_p c_pᵀ + λ2 I

with `c_i` the concept's states, `v*_i = W c*_i` the layer's output for their replacements `c*_i`,
and `c_p` states to be kept. So `W' - W = W X M⁻¹` with `X = Σ (c*_i - c_i) c_iᵀ`: the
second factor is the same for all layers that read the same states.

UCE has no gate: as published, the model is edited permanently. Where a guard is fitted with a gate,
a linear score of the prompt decides which requests use the edited model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from steering.images.conditioning import Conditioning
from steering.images.embedding import Refinement
from steering.images.projection import Overlay
from steering.methods.fitted import FittedGuard
from steering.methods.prompt_score import PromptGate, stacked_gate


@dataclass(frozen=True)
class Moments:
    """Sums over the states of one group of layers, `[in, in]`, float64.

    `erased` is `Σ c_i c_iᵀ`, `kept` `Σ c_p c_pᵀ`, `moved` `Σ (c*_i - c_i) c_iᵀ`.
    """

    erased: Tensor
    kept: Tensor
    moved: Tensor


def counterparts(mask: Tensor, instead: Tensor) -> Tensor:
    """For each real token of `mask [rows, tokens]` the position of its replacement, 0 for padding:
    `[rows, tokens]`.

    `instead [tokens]` marks the real tokens of the prompt that replaces all rows. A token maps to
    the token at its position, those past its end to the last one; the last token (the encoder's
    end mark) to the last.
    """
    order = mask.cumsum(1) - 1
    last = max(int(instead.sum()) - 1, 0)
    ends = order == mask.sum(1, keepdim=True) - 1
    rank = torch.where(ends, last, order.clamp(min=0, max=last))
    # the real tokens first, in their order
    places = (~instead).to(torch.int8).argsort(stable=True)
    return torch.where(mask, places[rank], 0)


def change(moments: Moments, *, keep: float, ridge: float) -> Tensor:
    """`X M⁻¹ [in, in]`: the change of a state before the layer's projection; `keep` is λ1, `ridge`
    λ2."""
    solved: Tensor = torch.linalg.solve(_system(moments, keep, ridge), moments.moved.T)
    return solved.T


def low_rank(
    moments: Moments, *, keep: float, ridge: float, rank: int
) -> tuple[Tensor, Tensor, float]:
    """`change` as `lift [in, rank]` times `reads [rank, in]`, and the share of it that is kept.

    It is the nearest change of that rank over the states of the fit, weighted as in `M`; the share
    is of the squared change of these states. Raises ValueError where there is no change.
    """
    lower = torch.linalg.cholesky(_system(moments, keep, ridge))
    # X M⁻¹ over states whose second moment is M = L Lᵀ is X M⁻¹ L = X L⁻ᵀ
    over = torch.linalg.solve_triangular(lower, moments.moved.T, upper=False).T
    left, values, right = torch.linalg.svd(over, full_matrices=False)
    spanned = int((values > 1e-9 * values[0]).sum()) if values[0] > 0.0 else 0
    if not spanned:
        raise ValueError("the concept's phrases and their replacement are the same")
    used = min(rank, spanned)
    reads = torch.linalg.solve_triangular(lower.T, right[:used].T, upper=True).T
    share = float(values[:used].square().sum() / values.square().sum())
    return left[:, :used] * values[:used], reads, share


def _system(moments: Moments, keep: float, ridge: float) -> Tensor:
    unit = torch.eye(len(moments.erased)).to(moments.erased)
    return moments.erased + keep * moments.kept + ridge * unit


class UceGuards:
    """All UCE guards of one model, stacked."""

    def __init__(self, names: Sequence[str], overlays: Sequence[Overlay], gate: PromptGate) -> None:
        self.names: Sequence[str] = tuple(names)
        self.overlays: Sequence[Overlay] = tuple(overlays)
        self._gate = gate

    def sense(self, text: Conditioning) -> Tensor:
        """Scores `[rows, guards]`: 1 where there is no gate, NaN for a row that is not finite."""
        return self._gate(text)

    def act(
        self, text: Conditioning, due: Tensor, threshold: Tensor, strength: Tensor
    ) -> Refinement:
        """Leaves the conditioning alone: the overlays act inside the denoiser."""
        return Refinement.none(text, strength)


def stack(guards: Sequence[FittedGuard], device: torch.device | str = "cpu") -> UceGuards:
    """From artifacts, as `guard fit uce` writes them. Raises ValueError naming a fault."""
    overlays = [_overlay(guard) for guard in guards]
    return UceGuards([guard.name for guard in guards], overlays, stacked_gate(guards, device))


def _overlay(guard: FittedGuard) -> Overlay:
    groups = guard.names_by("groups")
    try:
        return Overlay(
            groups,
            {group: guard.tensor("reads", group, 2, 4) for group in groups},
            {
                layer: guard.tensor("writes", layer, 2)
                for layers in groups.values()
                for layer in layers
            },
        )
    except ValueError as error:
        raise ValueError(f"guard {guard.name}: {error}") from error
