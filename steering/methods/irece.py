"""IRECE: find the concept in the latents while they are made, and break it there (M-ErasureBench,
arXiv 2512.22877, section 4).

*Whether* the concept is there is said by classifiers of latents (`classifiers/latents.py`), asked
of the estimate x̂_0. *Where* is a sum of maps, each taken as deviations from its own mean: what the
places attend to, head by head, and the classifiers' own votes. The sum is smoothed, and the mask is
what rises over `mask` of the way from its median to its peak.

The paper asks attention for both. It was found to tell the place, but not whether the concept is
there: with the prompt's own tokens to be told from, attention to "a knife" is as high on a picture
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
from steering.erasing import Found, Looks, Read, Seen
from steering.methods.embedding import EmbeddingGuard, numbers
from steering.methods.latents import LatentScreen, loaded

REPLACEMENTS = ("background", "unconditional", "zero")
"""What z̃_0 is: the mean of the estimate outside of the mask, what the network makes of the latents
without a prompt, or nothing."""


class IreceEraser:
    """All guards of one model; `classifiers[i]` are the members of guard i."""

    def __init__(
        self,
        guards: Sequence[EmbeddingGuard],
        reads: Sequence[Sequence[Read]],
        classifiers: Sequence[LatentClassifiers],
        device: torch.device | str,
    ) -> None:
        self.names: Sequence[str] = tuple(guard.name for guard in guards)
        self.reads = tuple(map(tuple, reads))
        self.looks = tuple(_looks(guard) for guard in guards)
        sizes = [len(own) for own in classifiers]
        self._screen = LatentScreen(self.names, stacked(classifiers), sizes)
        self.channels = self._screen.channels
        self._votes, self._mask = numbers(guards, "votes", device), numbers(guards, "mask", device)
        self._smoothing = numbers(guards, "smoothing", device)
        self._replacement = torch.tensor([_replacement(guard) for guard in guards], device=device)

    def sense(self, estimate: Tensor, columns: Sequence[int]) -> tuple[Tensor, Tensor]:
        return self._screen.sense_places(estimate, columns)

    def find(self, seen: Seen) -> Found:
        shape = seen.estimate.shape[2:]
        votes = _on(seen.votes, shape)
        evidence = _beside(self._votes[seen.guard], votes) * _standing_out(votes)
        evidence = evidence.index_add(0, seen.owner, _standing_out(seen.attended))
        evidence = _smoothed(evidence, self._smoothing[seen.guard])
        flat = evidence.flatten(1)
        middle, top = flat.median(1).values, flat.amax(1)
        share = (evidence - _beside(middle, evidence)) / _beside(top - middle, evidence)
        mask = (share > _beside(self._mask[seen.guard], share)).float()
        return Found(mask, _standing_out(evidence).flatten(1).amax(1), self._instead(seen, mask))

    def _instead(self, seen: Seen, mask: Tensor) -> Tensor:
        kind = self._replacement[seen.guard]
        estimate, inside = seen.estimate, mask[:, None]
        axes = tuple(range(2, estimate.ndim))
        outside = 1 - inside
        mean = (estimate * outside).sum(axes) / outside.sum(axes).clamp(min=1)
        wide = (*mean.shape, *[1] * len(axes))
        made = torch.where(
            _beside(kind == REPLACEMENTS.index("background"), estimate),
            mean.view(wide).expand_as(estimate),
            seen.unconditional,
        )
        return made.masked_fill(_beside(kind == REPLACEMENTS.index("zero"), estimate), 0.0)


def stack(guards: Sequence[EmbeddingGuard], device: torch.device | str = "cpu") -> IreceEraser:
    """From artifacts, as `guard fit irece` writes them. Raises ValueError naming a fault."""
    reads = [_reads(guard, device) for guard in guards]
    return IreceEraser(guards, reads, [loaded(guard, device) for guard in guards], device)


def _reads(guard: EmbeddingGuard, device: torch.device | str) -> list[Read]:
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
        found.append(Read(layer, head, keys, others))
    return found


def _looks(guard: EmbeddingGuard) -> Looks:
    level, count = guard.number("level"), guard.number("looks")
    if not 0 < level <= 1 or count != int(count) or not 1 <= count <= 1000:
        raise ValueError(f"guard {guard.name}: level must lie in 0..1, and looks be 1 to 1000")
    return Looks(level, int(count))


def _replacement(guard: EmbeddingGuard) -> int:
    named = guard.settings.get("replacement")
    if named not in REPLACEMENTS:
        known = ", ".join(REPLACEMENTS)
        raise ValueError(f"guard {guard.name}: replacement must be one of {known}, not {named!r}")
    return REPLACEMENTS.index(named)


def _standing_out(maps: Tensor) -> Tensor:
    """Each map as deviations from its own mean; a flat one is zero."""
    flat = maps.flatten(1)
    spread = flat.std(1, keepdim=True).clamp(min=1e-6)
    return ((flat - flat.mean(1, keepdim=True)) / spread).view_as(maps)


def _on(votes: Tensor, shape: Sequence[int]) -> Tensor:
    """Votes `[pairs, frames, places]` on a grid of `shape`: (frames,) height, width."""
    height, width = shape[-2:]
    rows = round(math.sqrt(votes.shape[-1] * height / width))
    apart = votes.flatten(0, 1).view(-1, 1, rows, votes.shape[-1] // rows)
    fine = F.interpolate(apart, size=(height, width), mode="bilinear", align_corners=False)
    return fine.view(len(votes), *shape)


def _smoothed(maps: Tensor, deviation: Tensor) -> Tensor:
    """By a Gaussian of `deviation [pairs]`, in shares of the picture's shorter side."""
    height, width = maps.shape[-2:]
    places = deviation * min(height, width)
    reach = max(1, math.ceil(2 * float(places.max())))
    at = torch.arange(-reach, reach + 1, device=maps.device)
    kernel = torch.exp(-(at**2) / (2 * places.clamp(min=1e-3)[:, None] ** 2))
    kernel = kernel / kernel.sum(1, keepdim=True)
    one = maps.flatten(1, -3) if maps.ndim > 3 else maps[:, None]
    one = F.pad(one, (reach, reach, reach, reach), mode="replicate").transpose(0, 1)
    pairs = len(maps)
    one = F.conv2d(one, kernel.view(pairs, 1, 1, -1), groups=pairs)
    one = F.conv2d(one, kernel.view(pairs, 1, -1, 1), groups=pairs)
    return one.transpose(0, 1).reshape(maps.shape)


def _beside(values: Tensor, maps: Tensor) -> Tensor:
    return values.view(-1, *[1] * (maps.ndim - 1))
