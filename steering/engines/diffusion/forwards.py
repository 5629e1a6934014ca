"""Forwards of the network with a fixed number of rows, so that a row does not depend on the batch.

A CPU's kernels sum in an order that depends on the number of rows, but neither on a row's position
nor on the values of the others. Forwards of one size therefore give a row the same bits whatever
the other rows are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from steering.engines.diffusion.families import Family
from steering.images.conditioning import Conditioning

ROWS = 4
"""The rows of one forward on a CPU, where larger forwards save little time."""


class RowSeam(Protocol):
    """Hooks inside the network that treat each of its rows by the guards of that row."""

    def enter(self, rows: Tensor) -> None:
        """Announce that the next forward runs these rows `[n]` of the batch."""

    def leave(self) -> None:
        """Announce that the next forwards are not the seam's."""


class Forwards:
    """Runs a family's network over any number of rows, `rows` of them in one forward.

    The last forward is filled up with copies of the last row. To fill up less, the rest may join
    another forward, of one and a half times `rows`, where this machine's kernels give the same bits
    at both sizes: that is tested once, when it first matters. `rows` None runs all rows at once.
    `seams` are told which rows each forward holds.
    """

    def __init__(self, family: Family, rows: int | None, seams: Sequence[RowSeam] = ()) -> None:
        self._family, self._rows, self._seams = family, rows, tuple(seams)
        self._grows: bool | None = None

    def __call__(
        self, latents: Tensor, timesteps: Tensor, text: Conditioning, guidance: Tensor
    ) -> Tensor:
        """The output of `Family.predict` for these rows, float32."""
        try:
            return self._run(latents, timesteps, text, guidance)
        finally:
            for seam in self._seams:
                seam.leave()

    def _run(
        self, latents: Tensor, timesteps: Tensor, text: Conditioning, guidance: Tensor
    ) -> Tensor:
        def predict(first: int, size: int) -> Tensor:
            at = torch.arange(first, first + size, device=latents.device).clamp(max=total - 1)
            for seam in self._seams:
                seam.enter(at)
            output = self._family.predict(latents[at], timesteps[at], text.select(at), guidance[at])
            return output.float()

        total = len(latents)
        if self._rows is None:
            return predict(0, total)
        rows, larger = self._rows, self._rows + self._rows // 2
        whole, rest = divmod(total, rows)
        merges = bool(whole) and 0 < rest <= larger - rows
        if merges and self._grows is None:
            separate = torch.cat([predict(0, rows), predict(rows, rows)])[:larger]
            self._grows = torch.equal(separate, predict(0, larger))
        first, sizes = 0, [rows] * (whole + bool(rest))
        if merges and self._grows:
            sizes = [larger, *[rows] * (whole - 1)]
        outputs = []
        for size in sizes:
            outputs.append(predict(first, size))
            first += size
        return torch.cat(outputs)[:total]
