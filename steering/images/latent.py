"""The attention and latent seams: guards that locate a concept in an image while it is generated,
and perturb the latents there.

Guards inspect a few of a row's denoising steps. They read the *estimate* of the finished image at
that evaluation of the network, `[rows, channels, (frames,) height, width]`, and the attention of
its places to the guard's tokens (`AttentionProbe`). Where a guard fires, the sample after the
evaluation becomes

    z ← (1 - M) z + M (signal · z̃_0 + noise · ε)

with the mask M, a replacement z̃_0 of the content there, and noise ε from the row's seed: IRECE of
M-ErasureBench (arXiv 2512.22877). Every loaded guard of one method is stacked into one
`LatentGuards`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True, eq=False)
class AttentionProbe:
    """One head of one cross-attention layer, read for some tokens.

    `keys [tokens, width]` are the keys of the concept's tokens, `others [tokens, width]` those of
    the tokens that they compete with, both as this layer and head project them.
    """

    layer: str
    head: int
    keys: Tensor
    others: Tensor


def coarser(shape: tuple[int, int], places: int) -> tuple[int, int]:
    """Height and width of a grid of `places`: `shape` divided by a whole factor, rounded up.

    Raises ValueError where no factor gives that number of places.
    """
    height, width = shape
    for factor in range(1, max(shape) + 1):
        rows, columns = -(-height // factor), -(-width // factor)
        if rows * columns == places:
            return rows, columns
    raise ValueError(f"no whole factor divides {height} x {width} into {places} places")


@dataclass(frozen=True)
class InspectionSchedule:
    """When a guard inspects a row: at most `count` times, evenly spaced, the last time at the last
    evaluation, and not before the noise is `level` of the sample (`noise / √(signal² + noise²)`).
    """

    level: float
    count: int

    def among(self, levels: Sequence[float], able: Sequence[bool]) -> frozenset[int]:
        """The evaluations to inspect, of a row with these noise `levels` before its evaluations;
        only evaluations that are `able` to be inspected count."""
        open_ = [i for i, level in enumerate(levels) if able[i] and level <= self.level]
        if not open_:
            return frozenset()
        last = len(open_) - 1
        count = min(self.count, len(open_))
        return frozenset(open_[last - (last * i) // max(1, count - 1)] for i in range(count))


@dataclass(frozen=True)
class LatentEvidence:
    """The evidence for pairs of a row and a guard that has fired, float32.

    `guard [pairs]` is the guard's column in its stack; `estimate [pairs, channels, ...]` is x̂_0,
    `unconditional` the same without the row's prompt, `votes [pairs, frames, places]` the votes of
    `sense`. `attended [probes, (frames,) height, width]` are the maps of the guards' probes, and
    `owner [probes]` the pair of each.
    """

    guard: Tensor
    estimate: Tensor
    unconditional: Tensor
    votes: Tensor
    attended: Tensor
    owner: Tensor


@dataclass(frozen=True)
class Localization:
    """Where the concept is: `mask [pairs, (frames,) height, width]` in 0..1, how far the likeliest
    place stands out from the rest of the image (`peak [pairs]`, in standard deviations), and the
    `replacement [pairs, channels, ...]` of the content there."""

    mask: Tensor
    peak: Tensor
    replacement: Tensor


class LatentGuards(Protocol):
    """All loaded guards of one method, stacked; column i is the guard `names[i]`.

    Guard i inspects at `inspections[i]`, with the attention that `probes[i]` read.
    """

    names: Sequence[str]
    channels: int
    inspections: Sequence[InspectionSchedule]
    probes: Sequence[Sequence[AttentionProbe]]

    def sense(self, estimate: Tensor, columns: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Scores `[rows, columns]` of these guards on `estimate [rows, channels, ...]`, and their
        votes, `[rows, columns, frames, places]`.

        A larger score means more of the concept; NaN for an estimate that is not finite.
        """

    def locate(self, evidence: LatentEvidence) -> Localization:
        """Locate the concept for each pair."""
