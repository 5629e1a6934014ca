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
from steering.hidden.table import require_tokens


class BranchingSequences:
    """The table of one forward over whole sequences: prompts and all tokens that stand behind them.

    Decisions are taken again, step by step, and each token gets the change of its own step: what a
    sequence reads and answers is the same as with a cache. `sequences[i]` are the places of its
    tokens among the `shape` `[rows, tokens]` tokens of the forward, flat and in their order, of
    which the first `prompts[i]` are its prompt; sequences may share the tokens of one prompt.
    `image [rows, tokens]` marks the tokens of images, None where it does not matter.
    """

    def __init__(
        self,
        bank: HiddenBank,
        guards: Sequence[RowGuard],
        sequences: Sequence[NDArray[np.int64]],
        prompts: Sequence[int],
        shape: tuple[int, ...],
        image: Tensor | None = None,
    ) -> None:
        self.bank = bank
        rows, at = len(sequences), np.concatenate(sequences)
        self._table = PackedTable(bank, rows, len(at), max(len(guards), 1))
        for row in range(rows):
            self._table.add(row, guards)
        self._shape = shape
        self._at = torch.from_numpy(at).to(bank.device)
        """The tokens of all sequences among `[rows * tokens]`."""
        lengths = np.array([len(each) for each in sequences])
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
                first=[1 - prompt for prompt in prompts],
                prompts=prompts,
                places=torch.arange(len(at), device=bank.device),
                before=before,
                image=None if image is None else image.flatten()[self._at],
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
        """As `Table.sense`."""
        require_tokens(hidden, self._shape)
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

    def excess(self, rows: Sequence[int]) -> Tensor:
        """As `GuardedRows.excess`."""
        return self._table.excess(rows)

    def readings(self, row: int) -> dict[str, Reading]:
        """As `GuardedRows.readings`."""
        return self._table.readings(row)


class WholeSequences(BranchingSequences):
    """One sequence in each row.

    `real [rows, tokens]` marks the tokens that are no padding; the first `prompt` columns are the
    prompts', later ones have no padding.
    """

    def __init__(
        self,
        bank: HiddenBank,
        guards: Sequence[RowGuard],
        real: NDArray[np.bool_],
        prompt: int,
        image: Tensor | None = None,
    ) -> None:
        count = real.shape[1]
        sequences = [row * count + np.flatnonzero(tokens) for row, tokens in enumerate(real)]
        prompts = real[:, :prompt].sum(1).tolist()
        super().__init__(bank, guards, sequences, prompts, real.shape, image)
