"""IRECE: find the concept in the latents while they are made, and break it there (M-ErasureBench,
arXiv 2512.22877, section 4).

*Whether* the concept is there is said by classifiers of latents (`classifiers/latents.py`), asked
of the estimate x̂_0. *Where* is a sum of maps, each taken as deviations from its own mean: what the
places attend to, head by head, and the classifiers' own votes. The sum is smoothed, and the mask is
what rises over `mask` of the way from its median to its peak.

The paper asks attention for both. It was found to tell the place, but not whether the concept is
there: with the prompt's own tokens to be told from, attention to "a knife" is as high on an image
without one, whose object it fits best. So attention is told from the tokens of the empty prompt,
which are the same for every row, and the classifiers decide.
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
"""What z̃_0 is: the mean of the estimate outside of the mask, what the network makes of the latents
without a prompt, or nothing."""


class IreceGuards:
    """All guards of one model; `classifiers[i]` are the members of guard i."""

    def __init__(
        self,
        guards: Sequence[FittedGuard],
        reads: Sequence[Sequence[AttentionProbe]],
        classifiers: Sequence[LatentClassifiers],
        device: torch.device | str,
    ) -> None:
        self.names: Sequence[str] = tuple(guard.name for guard in guards)
        self.reads: Sequence[Sequence[AttentionProbe]] = tuple(map(tuple, reads))
        self.looks: Sequence[InspectionSchedule] = tuple(_looks(guard) for guard in guards)
        for guard, own in zip(guards, self.reads, strict=True):
            _require_bounds(guard, own)
        sizes = [len(own) for own in classifiers]
        self._screen = LatentClassifierGuards(self.names, stacked(classifiers), sizes)
        self.channels = self._screen.channels
        self._votes, self._mask = numbers(guards, "votes", device), numbers(guards, "mask", device)
        self._smoothing = numbers(guards, "smoothing", device)
        self._replacement = torch.tensor([_replacement(guard) for guard in guards], device=device)

    def sense(self, estimate: Tensor, columns: Sequence[int]) -> tuple[Tensor, Tensor]:
        return self._screen.sense_places(estimate, columns)

    def evidence(self, seen: LatentEvidence) -> Tensor:
        """What speaks for each place, `[pairs, (frames,) height, width]`."""
        votes = votes_map(seen.votes, seen.estimate.shape[2:])
        weighted = beside(self._votes[seen.guard], votes) * votes
        both = weighted.index_add(0, seen.owner, standing_out(seen.attended))
        return smoothed(both, self._smoothing[seen.guard])

    def soft_mask(self, seen: LatentEvidence) -> Tensor:
        """A differentiable mask in 0..1 that rises where the evidence stands out, for an attacker:
        `find` cuts it off at a share of its peak, which has no slope."""
        return torch.sigmoid(standing_out(self.evidence(seen)))

    def find(self, seen: LatentEvidence) -> Localization:
        evidence = self.evidence(seen)
        mask = mask_of(evidence, self._mask[seen.guard])
        kind = self._replacement[seen.guard]
        instead = replaced(seen.estimate, seen.unconditional, mask, kind)
        return Localization(mask, standing_out(evidence).flatten(1).amax(1), instead)


def stack(guards: Sequence[FittedGuard], device: torch.device | str = "cpu") -> IreceGuards:
    """From artifacts, as `guard fit irece` writes them. Raises ValueError naming a fault."""
    reads = [_reads(guard, device) for guard in guards]
    return IreceGuards(guards, reads, [loaded(guard, device) for guard in guards], device)


def _reads(guard: FittedGuard, device: torch.device | str) -> list[AttentionProbe]:
    named: Any = guard.settings.get("reads")
    if not isinstance(named, list):
        raise ValueError(f"guard {guard.name}: reads must be a list of layers and heads")
    found = []
    for i, read in enumerate(named):
        if not (isinstance(read, list) and len(read) == 2 and isinstance(read[0], str)):
            raise ValueError(f"guard {guard.name}: a read must be a layer and a head, not {read!r}")
        layer, head = read[0], read[1]
        if isinstance(head, bool) or not isinstance(head, int) or head < 0:
            raise ValueError(f"guard {guard.name}: {head!r} is no head")
        keys, others = (
            guard.tensor(f"{name}{i}", "attention", 2).to(device) for name in ("keys", "others")
        )
        if keys.shape[1] != others.shape[1]:
            raise ValueError(f"guard {guard.name}: keys and others of {layer} differ in width")
        found.append(AttentionProbe(layer, head, keys, others))
    return found


def _looks(guard: FittedGuard) -> InspectionSchedule:
    level, count = guard.number("level"), guard.number("looks")
    if not 0 < level <= 1 or count != int(count) or not 1 <= count <= 1000:
        raise ValueError(f"guard {guard.name}: level must lie in 0..1, and looks be 1 to 1000")
    return InspectionSchedule(level, int(count))


def _require_bounds(guard: FittedGuard, reads: Sequence[AttentionProbe]) -> None:
    for key, least, most in (("votes", 0.0, 1e3), ("mask", 0.0, 1.0), ("smoothing", 0.0, 0.5)):
        if not least <= guard.number(key) <= most:
            raise ValueError(f"guard {guard.name}: {key} must lie in {least:g}..{most:g}")
    if not reads and not guard.number("votes"):
        raise ValueError(f"guard {guard.name}: without reads and votes it finds no place")


def _replacement(guard: FittedGuard) -> int:
    named = guard.settings.get("replacement")
    if named not in REPLACEMENTS:
        known = ", ".join(REPLACEMENTS)
        raise ValueError(f"guard {guard.name}: replacement must be one of {known}, not {named!r}")
    return REPLACEMENTS.index(named)


def standing_out(maps: Tensor) -> Tensor:
    """Each map `[maps, ...]` as deviations from its own mean; a flat one is zero."""
    flat = maps.flatten(1)
    spread = flat.std(1, correction=0, keepdim=True).clamp(min=1e-6)
    return ((flat - flat.mean(1, keepdim=True)) / spread).view_as(maps)


def votes_map(votes: Tensor, shape: Sequence[int]) -> Tensor:
    """Votes `[pairs, frames, places]` as deviations, on a grid `shape`: (frames,) height, width."""
    height, width = shape[-2:]
    apart = votes.flatten(0, 1).view(-1, 1, *coarser((height, width), votes.shape[-1]))
    fine = F.interpolate(apart, size=(height, width), mode="bilinear", align_corners=False)
    return standing_out(fine.view(len(votes), *shape))


def smoothed(maps: Tensor, deviation: Tensor) -> Tensor:
    """By a Gaussian of `deviation [maps]`, in shares of the image's shorter side, two of them
    wide to each side."""
    height, width = maps.shape[-2:]
    places = deviation * min(height, width)
    reach = max(1, math.ceil(2 * float(places.max())))
    at = torch.arange(-reach, reach + 1, device=maps.device)
    kernel = torch.exp(-(at**2) / (2 * places.clamp(min=1e-3)[:, None] ** 2))
    # no map is smoothed farther because another one is
    kernel = kernel * (at.abs() <= (2 * places).ceil().clamp(min=1)[:, None])
    kernel = kernel / kernel.sum(1, keepdim=True)
    count = len(maps)
    one = maps.reshape(count, -1, height, width).transpose(0, 1)
    one = F.pad(one, (reach, reach, reach, reach), mode="replicate")
    one = F.conv2d(one, kernel.view(count, 1, 1, -1), groups=count)
    one = F.conv2d(one, kernel.view(count, 1, -1, 1), groups=count)
    return one.transpose(0, 1).reshape(maps.shape)


def mask_of(evidence: Tensor, share: Tensor) -> Tensor:
    """1 where `evidence [maps, ...]` rises over `share [maps]` of the way from its median to its
    peak, 0 elsewhere; nothing of a flat map."""
    flat = evidence.flatten(1)
    middle, top = flat.median(1).values, flat.amax(1)
    rise = evidence - beside(middle, evidence)
    over = rise > beside(share * (top - middle), evidence)
    return (over & beside(top > middle, evidence)).float()


def replaced(estimate: Tensor, unconditional: Tensor, mask: Tensor, kind: Tensor) -> Tensor:
    """z̃_0 `[pairs, channels, ...]` for masks `[pairs, ...]`; `kind [pairs]` counts REPLACEMENTS."""
    axes = tuple(range(2, estimate.ndim))
    outside = 1 - mask[:, None]
    mean = (estimate * outside).sum(axes, keepdim=True)
    mean = mean / outside.sum(axes, keepdim=True).clamp(min=1)
    is_ = {name: beside(kind == i, estimate) for i, name in enumerate(REPLACEMENTS)}
    made = torch.where(is_["background"], mean.expand_as(estimate), unconditional)
    return made.masked_fill(is_["zero"], 0.0)


def beside(values: Tensor, maps: Tensor) -> Tensor:
    """`values [n]` shaped so as to stand beside `maps [n, ...]`."""
    return values.view(-1, *[1] * (maps.ndim - 1))
