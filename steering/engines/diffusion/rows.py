"""The state of the rows of a running batch: tensors by row, and the host's state of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from steering.engines.diffusion.sampling.trajectories import Trajectory
from steering.hidden.rows import RowGuard
from steering.images.conditioning import Conditioning
from steering.images.embedding import ImageReading


@dataclass
class RowState:
    """The host's state of a row.

    `left` evaluations of its `trajectory` are still to be done. `guiding` are its guards that act
    on the guidance, `overlaying` those whose overlays the network runs with, `inspecting` those
    that read the finished latents. `spoilt` means that its conditioning, its initial state or a
    prediction was not finite.
    """

    left: int
    trajectory: Trajectory
    guidance: float
    guiding: Sequence[RowGuard]
    readings: Mapping[str, ImageReading]
    inspecting: Sequence[RowGuard]
    overlaying: Sequence[RowGuard]
    spoilt: bool

    @property
    def inverts(self) -> bool:
        """Whether it is being inverted, from its image to noise."""
        return self.left > self.trajectory.generating

    @property
    def scale(self) -> float:
        """The current guidance scale: 1 during an inversion."""
        return 1.0 if self.inverts else self.guidance

    @property
    def invalid(self) -> bool:
        return self.spoilt or not all(reading.valid for reading in self.readings.values())


class Slots:
    """Latents, the sampler's carry, evaluations done, and both conditionings, `[capacity, ...]`.

    The shapes are those of `text` and `noise`, which have one row each.
    """

    def __init__(self, capacity: int, text: Conditioning, noise: Tensor) -> None:
        self.text = text.expand(capacity).clone()
        self.negative = text.expand(capacity).clone()
        self.latents = noise.expand(capacity, *noise.shape[1:]).clone()
        self.carry = torch.zeros_like(self.latents)
        self.done = torch.zeros(capacity, dtype=torch.long, device=noise.device)

    def put(self, rows: slice, text: Conditioning, negative: Conditioning, latents: Tensor) -> None:
        """Fill `rows` with fresh rows."""
        self.text.put(rows, text)
        self.negative.put(rows, negative)
        self.latents[rows] = latents
        self.carry[rows] = 0.0
        self.done[rows] = 0

    def move(self, source: int, target: int) -> None:
        """Copy row `source` to row `target`."""
        to, origin = slice(target, target + 1), slice(source, source + 1)
        for text in (self.text, self.negative):
            text.put(to, text.select(origin))
        for state in (self.latents, self.carry, self.done):
            state[target] = state[source]

    def advance(self, latents: Tensor, carry: Tensor) -> None:
        """Store the result of one evaluation of the first rows."""
        rows = slice(0, len(latents))
        self.latents[rows], self.carry[rows] = latents, carry
        self.done[rows] += 1


def beside(values: Tensor, rows: Tensor) -> Tensor:
    """`values [n]` as a view that broadcasts over `rows [n, ...]`."""
    return values.view(-1, *[1] * (rows.ndim - 1))
