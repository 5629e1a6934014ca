"""The attention and latent seams: guards that find a concept in an image on its way and break it
there.

They look a few times on the way. What they see is the *estimate* of the finished image that each
evaluation of the network gives, `[rows, channels, (frames,) height, width]`, and how much its
places attend to the guard's tokens (`Attended`). Where one fires, the sample behind the evaluation
becomes

    z ← (1 - M) z + M (signal · z̃_0 + noise · ε)

with the mask M, a replacement z̃_0 of what was there, and ε of the row's own: IRECE of
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

    `keys [tokens, width]` are those of the tokens looked for, `others [tokens, width]` those of the
    tokens that they are told from, both as this layer and head project them.
    """

    layer: str
    head: int
    keys: Tensor
    others: Tensor


def coarser(shape: tuple[int, int], places: int) -> tuple[int, int]:
    """Height and width of the grid of `places` that is that of `shape` made coarser by a whole
    factor, the border rounded up.

    Raises ValueError where there is none.
    """
    height, width = shape
    for factor in range(1, max(shape) + 1):
        rows, columns = -(-height // factor), -(-width // factor)
        if rows * columns == places:
            return rows, columns
    raise ValueError(f"{places} places are no coarser grid of {height} x {width}")


@dataclass(frozen=True)
class InspectionSchedule:
    """When a guard looks at a row: at most `count` times, evenly, the last time at its last
    evaluation, and not before the noise is `level` of the sample (`noise / √(signal² + noise²)`).
    """

    level: float
    count: int

    def among(self, levels: Sequence[float], able: Sequence[bool]) -> frozenset[int]:
        """The evaluations of a row whose noise has these levels before them, where it is `able`."""
        open_ = [i for i, own in enumerate(levels) if able[i] and own <= self.level]
        if not open_:
            return frozenset()
        last = len(open_) - 1
        count = min(self.count, len(open_))
        return frozenset(open_[last - (last * i) // max(1, count - 1)] for i in range(count))


@dataclass(frozen=True)
class LatentEvidence:
    """What pairs of a row and a guard that has fired look at, float32.

    `guard [pairs]` is the guard's column in its eraser; `estimate [pairs, channels, ...]` is x̂_0,
    `unconditional` the same without the row's prompt, `votes [pairs, frames, places]` what `sense`
    has said of it. `attended [reads, (frames,) height, width]` are the guards' reads, and
    `owner [reads]` the pair of each.
    """

    guard: Tensor
    estimate: Tensor
    unconditional: Tensor
    votes: Tensor
    attended: Tensor
    owner: Tensor


@dataclass(frozen=True)
class Localization:
    """Where the pairs have found it: `mask [pairs, (frames,) height, width]` in 0..1, how far the
    likeliest place stands out from the image's others (`peak [pairs]`, in deviations), and what
    to put there, `replacement [pairs, channels, ...]`."""

    mask: Tensor
    peak: Tensor
    replacement: Tensor


class LatentGuards(Protocol):
    """All loaded guards of one method, stacked; column i is the guard `names[i]`."""

    names: Sequence[str]
    channels: int
    looks: Sequence[InspectionSchedule]
    reads: Sequence[Sequence[AttentionProbe]]

    def sense(self, estimate: Tensor, columns: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Scores `[rows, columns]` of these guards on `estimate [rows, channels, ...]`, and their
        votes, `[rows, columns, frames, places]`.

        A larger score means more of the concept; NaN for an estimate that is not finite.
        """

    def find(self, seen: LatentEvidence) -> Localization:
        """Where the concept is."""
