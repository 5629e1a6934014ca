"""IRECE: locate the concept in the latents during generation, and perturb it there (M-ErasureBench,
arXiv 2512.22877, section 4).

Classifiers of latents (`classifiers/latents.py`), applied to the estimate x̂_0, decide *whether* the
concept is there. *Where* it is comes from a sum of maps, each in standard deviations from its mean:
the attention of the places, head by head, and the classifiers' votes. The sum is smoothed, and the
mask is the region above the share `mask` of the way from its median to its peak.

The paper uses attention for both. Measured here, attention gives the place, but not whether the
concept is there: where it competes with the prompt's other tokens, attention to "a knife" is as
high on an image without one, at the object that fits it best. Here the concept's tokens compete
with those of the empty prompt, which are the same for every row, and the classifiers decide.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from classifiers.latents import LatentClassifiers, stacked
from steering.images.latent import (
    AttentionProbe,
    InspectionSchedule,
    LatentEvidence,
    Localization,
    coarser,
)
from steering.methods.fitted import FittedGuard, numbers
from steering.methods.latents import LatentClassifierGuards, loaded

REPLACEMENTS = ("background", "unconditional", "zero")
"""The content of z̃_0: the mean of the estimate outside of the mask, the network's estimate without
a prompt, or zero."""


class IreceGuards:
    """All IRECE guards of one model, stacked; `classifiers[i]` are the members of guard i."""

    def __init__(
        self,
        guards: Sequence[FittedGuard],
        probes: Sequence[Sequence[AttentionProbe]],
        classifiers: Sequence[LatentClassifiers],
        device: torch.device | str,
    ) -> None:
        self.names: Sequence[str] = tuple(guard.name for guard in guards)
        self.probes: Sequence[Sequence[AttentionProbe]] = tuple(map(tuple, probes))
        self.inspections: Sequence[InspectionSchedule] = tuple(map(_inspections, guards))
        for guard, guard_probes in zip(guards, self.probes, strict=True):
            _require_bounds(guard, guard_probes)
        sizes = [*map(len, classifiers)]
        self._classifiers = LatentClassifierGuards(self.names, stacked(classifiers), sizes)
        self.channels = self._classifiers.channels
        self._votes, self._mask = numbers(guards, "votes", device), numbers(guards, "mask", device)
        self._smoothing = numbers(guards, "smoothing", device)
        self._replacement = torch.tensor([_replacement(guard) for guard in guards], device=device)

    def sense(self, estimate: Tensor, columns: Sequence[int]) -> tuple[Tensor, Tensor]:
        """See `LatentGuards.sense`."""
        return self._classifiers.sense_places(estimate, columns)

    def evidence_map(self, evidence: LatentEvidence) -> Tensor:
        """The smoothed sum of the maps, `[pairs, (frames,) height, width]`."""
        votes = votes_map(evidence.votes, evidence.estimate.shape[2:])
        weighted = beside(self._votes[evidence.guard], votes) * votes
        total = weighted.index_add(0, evidence.owner, standing_out(evidence.attended))
        return smoothed(total, self._smoothing[evidence.guard])

    def soft_mask(self, evidence: LatentEvidence) -> Tensor:
        """A differentiable mask in 0..1 that rises where the evidence stands out, for an attacker:
        the mask of `locate` is a threshold at a share of the peak, which has no gradient."""
        return torch.sigmoid(standing_out(self.evidence_map(evidence)))

    def locate(self, evidence: LatentEvidence) -> Localization:
        """See `LatentGuards.locate`."""
        total = self.evidence_map(evidence)
        mask = mask_of(total, self._mask[evidence.guard])
        kind = self._replacement[evidence.guard]
        replacement = replaced(evidence.estimate, evidence.unconditional, mask, kind)
        return Localization(mask, standing_out(total).flatten(1).amax(1), replacement)


def stack(guards: Sequence[FittedGuard], device: torch.device | str = "cpu") -> IreceGuards:
    """From artifacts, as `guard fit irece` writes them. Raises ValueError naming a fault."""
    probes = [_probes(guard, device) for guard in guards]
    return IreceGuards(guards, probes, [loaded(guard, device) for guard in guards], device)


def _probes(guard: FittedGuard, device: torch.device | str) -> list[AttentionProbe]:
    reads: Any = guard.settings.get("reads")
    if not isinstance(reads, list):
        raise ValueError(f"guard {guard.name}: reads must be a list of layers and heads")
    probes = []
    for i, read in enumerate(reads):
        if not (isinstance(read, list) and len(read) == 2 and isinstance(read[0], str)):
            raise ValueError(f"guard {guard.name}: a read must be a layer and a head, not {read!r}")
        layer, head = read[0], read[1]
        if isinstance(head, bool) or not isinstance(head, int) or head < 0:
            raise ValueError(f"guard {guard.name}: {head!r} is no head: it must be a number from 0")
        keys, others = (
            guard.tensor(f"{name}{i}", "attention", 2).to(device) for name in ("keys", "others")
        )
        if keys.shape[1] != others.shape[1]:
            raise ValueError(f"guard {guard.name}: keys and others of {layer} differ in width")
        probes.append(AttentionProbe(layer, head, keys, others))
    return probes


def _inspections(guard: FittedGuard) -> InspectionSchedule:
    level, count = guard.number("level"), guard.number("looks")
    if not 0 < level <= 1 or count != int(count) or not 1 <= count <= 1000:
        raise ValueError(f"guard {guard.name}: level must lie in 0..1, and looks be 1 to 1000")
    return InspectionSchedule(level, int(count))


def _require_bounds(guard: FittedGuard, probes: Sequence[AttentionProbe]) -> None:
    for key, least, most in (("votes", 0.0, 1e3), ("mask", 0.0, 1.0), ("smoothing", 0.0, 0.5)):
        if not least <= guard.number(key) <= most:
            raise ValueError(f"guard {guard.name}: {key} must lie in {least:g}..{most:g}")
    if not probes and not guard.number("votes"):
        raise ValueError(
            f"guard {guard.name}: without reads and votes it cannot locate the concept"
        )


def _replacement(guard: FittedGuard) -> int:
    name = guard.settings.get("replacement")
    if name not in REPLACEMENTS:
        known = ", ".join(REPLACEMENTS)
        raise ValueError(f"guard {guard.name}: replacement must be one of {known}, not {name!r}")
    return REPLACEMENTS.index(name)


def standing_out(maps: Tensor) -> Tensor:
    """Each map `[maps, ...]` in standard deviations from its mean; a flat map becomes zero."""
    if not len(maps):
        return maps  # of which torch would warn that they have no deviation
    flat = maps.flatten(1)
    spread = flat.std(1, correction=0, keepdim=True).clamp(min=1e-6)
    return ((flat - flat.mean(1, keepdim=True)) / spread).view_as(maps)


def votes_map(votes: Tensor, shape: Sequence[int]) -> Tensor:
    """Votes `[pairs, frames, places]` in standard deviations, on a grid `shape`: (frames,) height,
    width."""
    height, width = shape[-2:]
    coarse = votes.flatten(0, 1).view(-1, 1, *coarser((height, width), votes.shape[-1]))
    fine = F.interpolate(coarse, size=(height, width), mode="bilinear", align_corners=False)
    return standing_out(fine.view(len(votes), *shape))


def smoothed(maps: Tensor, deviation: Tensor) -> Tensor:
    """The maps convolved with a Gaussian of `deviation [maps]`, as a share of the image's shorter
    side; the kernel reaches two deviations to each side."""
    height, width = maps.shape[-2:]
    places = deviation * min(height, width)
    reach = max(1, math.ceil(2 * float(places.max())))
    at = torch.arange(-reach, reach + 1, device=maps.device)
    kernel = torch.exp(-(at**2) / (2 * places.clamp(min=1e-3)[:, None] ** 2))
    # the kernel of a map does not depend on the widest one
    kernel = kernel * (at.abs() <= (2 * places).ceil().clamp(min=1)[:, None])
    kernel = kernel / kernel.sum(1, keepdim=True)
    count = len(maps)
    frames = maps.reshape(count, -1, height, width).transpose(0, 1)
    frames = F.pad(frames, (reach, reach, reach, reach), mode="replicate")
    frames = F.conv2d(frames, kernel.view(count, 1, 1, -1), groups=count)
    frames = F.conv2d(frames, kernel.view(count, 1, -1, 1), groups=count)
    return frames.transpose(0, 1).reshape(maps.shape)


def mask_of(evidence: Tensor, share: Tensor) -> Tensor:
    """1 where `evidence [maps, ...]` is above `share [maps]` of the way from its median to its
    peak, 0 elsewhere; 0 everywhere for a flat map."""
    flat = evidence.flatten(1)
    middle, top = flat.median(1).values, flat.amax(1)
    rise = evidence - beside(middle, evidence)
    over = rise > beside(share * (top - middle), evidence)
    return (over & beside(top > middle, evidence)).float()


def replaced(estimate: Tensor, unconditional: Tensor, mask: Tensor, kind: Tensor) -> Tensor:
    """z̃_0 `[pairs, channels, ...]` for `mask [pairs, ...]`; `kind [pairs]` indexes REPLACEMENTS."""
    axes = tuple(range(2, estimate.ndim))
    outside = 1 - mask[:, None]
    mean = (estimate * outside).sum(axes, keepdim=True)
    mean = mean / outside.sum(axes, keepdim=True).clamp(min=1)
    chosen = {name: beside(kind == i, estimate) for i, name in enumerate(REPLACEMENTS)}
    content = torch.where(chosen["background"], mean.expand_as(estimate), unconditional)
    return content.masked_fill(chosen["zero"], 0.0)


def beside(values: Tensor, maps: Tensor) -> Tensor:
    """`values [n]` with trailing dimensions, so that they broadcast with `maps [n, ...]`."""
    return values.view(-1, *[1] * (maps.ndim - 1))
