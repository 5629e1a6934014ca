"""Guards that are overlays of the denoiser, each with a gate on the prompt or with none.

Whoever makes the overlays (closed forms, `guard/fitting/images/closed_form/`; checkpoints and files
of adapters, `guard/fitting/overlays/`), they are served alike: published erasers edit a model
permanently, and a guard without a gate acts on every row that carries it. Where a guard has a gate,
a linear score of the prompt (`prompt_score.py`) decides which requests use the edited model; at the
others the overlay's strength is exactly zero.

A guard may also have its strength follow that score, after SPM's facilitated transport (arXiv
2312.16145): `γ = (score - threshold) / (full - threshold)`, at most 1. It is computed once for a
request and multiplies the change of each layer once; the released code multiplies both factors,
which makes it γ², and takes a cosine of padded states, which is never zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from steering.images.conditioning import Conditioning
from steering.images.embedding import Refinement
from steering.images.projection import Overlay
from steering.methods.fitted import FittedGuard, faults_of
from steering.methods.prompt_score import PromptGate, PromptGated, stacked_gate


class GatedOverlays(PromptGated):
    """All guards of one such method on one model, stacked; `full [guards]` is the score from which
    on each acts at its whole strength, -inf for one that always does."""

    def __init__(
        self,
        names: Sequence[str],
        overlays: Sequence[Overlay],
        gate: PromptGate,
        full: Tensor,
    ) -> None:
        super().__init__(names, gate)
        self.overlays: Sequence[Overlay] = tuple(overlays)
        self._full = full
        self._follows = bool((full > -torch.inf).any())

    def act(
        self, text: Conditioning, due: Tensor, threshold: Tensor, strength: Tensor
    ) -> Refinement:
        """Leaves the conditioning alone; the scale of a row follows its score."""
        if not self._follows:  # classifiers would be asked again for nothing
            return Refinement.none(text, strength)
        reach = self._full - threshold
        share = (self.sense(text) - threshold) / reach.clamp(min=1e-12)
        scale = torch.where(reach > 0.0, share.clamp(0.0, 1.0), 1.0)
        return Refinement.none(text, strength, scale)


def stack(guards: Sequence[FittedGuard], device: torch.device | str = "cpu") -> GatedOverlays:
    """From artifacts with tensors `reads.GROUP [rank, in]`, of convolutions
    `[rank, in, height, width]`, and `writes.LAYER [rank, out]`.

    Raises ValueError naming a fault.
    """
    overlays = [_overlay(guard) for guard in guards]
    full = torch.tensor([_full_score(guard) for guard in guards], device=device)
    gate = stacked_gate(guards, device)
    return GatedOverlays([guard.name for guard in guards], overlays, gate, full)


def _full_score(guard: FittedGuard) -> float:
    full = guard.optional_number("full_score")
    if full is not None and not guard.flag("gated"):
        raise ValueError(f"guard {guard.name}: has a full_score, and no gate whose score it is of")
    return -math.inf if full is None else full


def _overlay(guard: FittedGuard) -> Overlay:
    groups = guard.names_by("groups")
    with faults_of(guard.name):
        return Overlay(
            groups,
            {group: guard.tensor("reads", group, 2, 4) for group in groups},
            {
                layer: guard.tensor("writes", layer, 2)
                for layers in groups.values()
                for layer in layers
            },
        )
