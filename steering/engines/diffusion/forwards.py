"""The network's forwards in sizes of their own, so that a row's result is not its company's doing.

A CPU's kernels sum in an order that depends on the number of rows, but neither on a row's place
among them nor on what the others hold. Forwards of one size therefore give a row the same bits
whoever stands beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from steering.engines.diffusion.families import Family
from steering.images.conditioning import Conditioning

ROWS = 4
"""Of one forward on a CPU: from here on larger ones save little time there."""


class RowSeam(Protocol):
    """Hooks inside the network that treat each of its rows as that row's guards want."""

    def enter(self, rows: Tensor) -> None:
        """The forward that follows holds these, `[n]`, of the rows that are run."""

    def leave(self) -> None:
        """No forward that follows is the seam's business."""


class Forwards:
    """Runs a family's network over any number of rows, `rows` of them in one forward.

    The last forward is filled up. To fill up less, two rows may join another forward (`rows` and a
    half as many again) where this machine's kernels make the same bits of both sizes: that is
    tried, once, when it first comes up. `rows` None runs all at once, whatever their number.
    `seams` are told which rows a forward holds.
    """

    def __init__(self, family: Family, rows: int | None, seams: Sequence[RowSeam] = ()) -> None:
        self._family, self._rows, self._seams = family, rows, tuple(seams)
        self._grows: bool | None = None

    def __call__(
        self, latents: Tensor, timesteps: Tensor, text: Conditioning, guidance: Tensor
    ) -> Tensor:
        """As `Family.predict`, float32."""
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
            said = self._family.predict(latents[at], timesteps[at], text.select(at), guidance[at])
            return said.float()

        total = len(latents)
        if self._rows is None:
            return predict(0, total)
        rows, larger = self._rows, self._rows + self._rows // 2
        whole, rest = divmod(total, rows)
        merges = bool(whole) and 0 < rest <= larger - rows
        if merges and self._grows is None:
            apart = torch.cat([predict(0, rows), predict(rows, rows)])[:larger]
            self._grows = torch.equal(apart, predict(0, larger))
        first, sizes = 0, [rows] * (whole + bool(rest))
        if merges and self._grows:
            sizes = [larger, *[rows] * (whole - 1)]
        outputs = []
        for size in sizes:
            outputs.append(predict(first, size))
            first += size
        return torch.cat(outputs)[:total]
