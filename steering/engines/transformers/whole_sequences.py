"""Guards on forwards without a cache: each runs the whole sequence of every row once more."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steering.hidden.bank import HiddenBank
from steering.hidden.packed import PackedTable
from steering.hidden.packed_forward import PackedForward
from steering.hidden.rows import Reading, RowGuard
from steering.hidden.slots import on_device


class WholeSequences:
    """The table of one forward over prompts and all tokens that were generated since.

    Decisions are taken again, step by step, and each token gets the change of its own step: what a
    row reads and answers is the same as with a cache. `real [rows, tokens]` marks the tokens that
    are no padding; the first `prompt` columns are the prompts', later ones have no padding.
    """

    def __init__(
        self,
        bank: HiddenBank,
        guards: Sequence[RowGuard],
        real: NDArray[np.bool_],
        prompt: int,
    ) -> None:
        self.bank = bank
        rows, at = len(real), np.flatnonzero(real)
        self._table = PackedTable(bank, rows, len(at), max(len(guards), 1))
        for row in range(rows):
            self._table.add(row, guards)
        self._shape = real.shape
        self._at = torch.from_numpy(at).to(bank.device)
        """The real tokens among `[rows * tokens]`."""
        lengths, prompts = real.sum(1), real[:, :prompt].sum(1)
        starts = lengths.cumsum() - lengths

        def before(stretches: NDArray[np.int64], count: int) -> Tensor:
            token = torch.arange(count, device=bank.device)
            first = on_device(starts[stretches], bank.device)[:, None]
            # past the end of a sequence: any place
            return (first + token).clamp(max=len(at) - 1)

        self._table.begin(
            PackedForward(
                rows=range(rows),
                lengths=lengths.tolist(),
                first=(1 - prompts).tolist(),
                prompts=prompts.tolist(),
                places=torch.arange(len(at), device=bank.device),
                before=before,
            )
        )

    @property
    def senses(self) -> bool:
        """Whether there is a token to sense."""
        return self._table.senses

    @property
    def acts(self) -> bool:
        """Whether there is a token that guards may change."""
        return self._table.acts

    def sense(self, layer: int, hidden: Tensor) -> None:
        """Sense `hidden [rows, tokens, width]` after `layer`."""
        self._table.sense(layer, hidden.flatten(0, 1)[self._at])

    def act(self, layer: int, hidden: Tensor) -> Tensor:
        """`hidden [rows, tokens, width]` with the changes that are due at each token; all other
        tokens keep their bits."""
        changed = hidden.flatten(0, 1).clone()
        real = changed[self._at]
        self._table.act(layer, real)
        changed[self._at] = real
        return changed.view(*self._shape, -1)

    def check(self, rows: slice, logits: Tensor) -> None:
        """As `GuardedRows.check`."""
        self._table.check(rows, logits)

    def flags(self, rows: slice) -> tuple[list[bool], list[bool]]:
        """As `GuardedRows.flags`."""
        return self._table.flags(rows)

    def readings(self, row: int) -> dict[str, Reading]:
        """As `GuardedRows.readings`."""
        return self._table.readings(row)
