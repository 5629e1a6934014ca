"""Guards that are overlays of the denoiser, each with a gate on the prompt or with none.

Whoever makes the overlays (closed forms, `guard/fitting/images/closed_form/`; checkpoints and files
of adapters, `guard/fitting/overlays/`), they are served alike: published erasers edit a model
permanently, and a guard without a gate acts on every row that carries it. Where a guard has a gate,
a linear score of the prompt (`prompt_score.py`) decides which requests use the edited model; at the
others the overlay's strength is exactly zero.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from steering.images.projection import Overlay
from steering.methods.fitted import FittedGuard, faults_of
from steering.methods.prompt_score import PromptGate, PromptGated, stacked_gate


class GatedOverlays(PromptGated):
    """All guards of one such method on one model, stacked."""

    def __init__(self, names: Sequence[str], overlays: Sequence[Overlay], gate: PromptGate) -> None:
        super().__init__(names, gate)
        self.overlays: Sequence[Overlay] = tuple(overlays)


def stack(guards: Sequence[FittedGuard], device: torch.device | str = "cpu") -> GatedOverlays:
    """From artifacts with tensors `reads.GROUP [rank, in]`, of convolutions
    `[rank, in, height, width]`, and `writes.LAYER [rank, out]`.

    Raises ValueError naming a fault.
    """
    overlays = [_overlay(guard) for guard in guards]
    return GatedOverlays([guard.name for guard in guards], overlays, stacked_gate(guards, device))


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
