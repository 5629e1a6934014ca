"""Random overlays for any family, and the same edits in its weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from steering.engines.diffusion.families import Family
from steering.engines.diffusion.seams.projections import text_projections
from steering.images.conditioning import Conditioning
from steering.images.embedding import Refinement
from steering.images.projection import Overlay
from tests.steering.engines.diffusion.guards import ShiftGuards

SCALE = 0.3


def random_overlay(family: Family, seed: int, *, rank: int = 2) -> Overlay:
    """With one group for each attention module, whose two projections read the same states."""
    generator = torch.Generator().manual_seed(seed)
    groups: dict[str, list[str]] = {}
    layers = text_projections(family.cross_attention())
    for name in layers:
        groups.setdefault(name.rpartition(".")[0], []).append(name)
    reads = {
        group: SCALE * torch.randn(rank, layers[names[0]].in_features, generator=generator)
        for group, names in groups.items()
    }
    writes = {
        name: SCALE * torch.randn(rank, layer.out_features, generator=generator)
        for name, layer in layers.items()
    }
    return Overlay(groups, reads, writes)


def edit(family: Family, overlay: Overlay, strength: float) -> None:
    """Change the weights themselves, as the published methods do."""
    layers = text_projections(family.cross_attention())
    for group, names in overlay.groups.items():
        for name in names:
            delta = overlay.writes[name].double().T @ overlay.reads[group].double()
            weight = layers[name].weight
            weight.data = (weight.data.double() + strength * delta).to(weight.dtype)


class OverlaidGuards(ShiftGuards):
    """Guards with an overlay each, and the scores of `ShiftGuards`."""

    def __init__(self, overlays: Sequence[Overlay], *names: str) -> None:
        super().__init__(*names)
        self.overlays: Sequence[Overlay] = overlays

    def act(
        self, text: Conditioning, due: Tensor, threshold: Tensor, strength: Tensor
    ) -> Refinement:
        steps = torch.zeros(text.rows, dtype=torch.long)
        return Refinement(text, steps, torch.full_like(strength, torch.nan))
