"""What each request of a running batch carries, and what its guards have seen: the hidden seam's
state.

The statistic that is compared with the threshold is the mean of the guard's `pool` largest token
gates so far: over the prompt's tokens at prefill, and, where the row rechecks, over the generated
ones too. It only grows, costs one small product a token, and does not depend on where in the
prompt the topic stands (a small model's last prompt token alone knows too little of it).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

import numpy as np
import torch
from torch import Tensor

from steering.bank import Bank

Rows = slice | Tensor
"""Of the capacity: a stretch, or the numbers of rows that differ."""


@dataclass(frozen=True)
class RowGuard:
    """One guard on one row.

    `acts` False only observes. `recheck` is the threshold for generated tokens, None to decide on
    the prompt alone.
    """

    name: str
    threshold: float
    strength: float
    acts: bool = True
    recheck: float | None = None


@dataclass(frozen=True)
class Reading:
    """What one guard saw on one row; `position` is 0 for the prompt, n for generated token n.

    `threshold` is the one that decided: where the guard fired, else the last one looked at.
    """

    score: float
    threshold: float
    position: int | None
    valid: bool

    @property
    def fired(self) -> bool:
        return self.position is not None


class GuardedRows:
    """Per-row state `[capacity, guards]` for a bank. Not thread-safe: one forward at a time."""

    def __init__(self, bank: Bank, capacity: int) -> None:
        self.bank = bank
        device, shape = bank.device, (capacity, len(bank))
        self._carried = torch.zeros(shape, dtype=torch.bool, device=device)
        self._acts = torch.zeros(shape, dtype=torch.bool, device=device)
        self._threshold = torch.zeros(shape, device=device)
        self._recheck = torch.full(shape, torch.inf, device=device)
        self._strength = torch.zeros(shape, device=device)
        self._top = torch.zeros((*shape, bank.pool), device=device)
        self._valid = torch.ones(shape, dtype=torch.bool, device=device)
        self._fired = torch.full(shape, -1, dtype=torch.long, device=device)
        """Generated tokens at the time the guard first fired; -1 while it is silent."""
        self._start = torch.full(shape, -1, dtype=torch.long, device=device)
        """The same for the running schedule of directions, which may start again."""
        self._generated = torch.zeros(capacity, dtype=torch.long, device=device)
        # host-side mirrors: whether a forward has anything to do is known without a device sync
        self._guarded = np.zeros(capacity, bool)
        self._rechecks = np.zeros(capacity, bool)

    def add(self, row: int, guards: Sequence[RowGuard]) -> None:
        """Put a fresh request on `row`. Raises KeyError for a guard that is not in the bank."""
        at = torch.tensor([self.bank.index[guard.name] for guard in guards], dtype=torch.long)
        at = at.to(self.bank.device)
        self.remove(row)
        self.restart(row)

        def put(state: Tensor, values: list[float] | list[bool]) -> None:
            state[row, at] = torch.tensor(values, dtype=state.dtype, device=state.device)

        put(self._carried, [True] * len(guards))
        put(self._acts, [guard.acts for guard in guards])
        put(self._threshold, [guard.threshold for guard in guards])
        put(self._strength, [guard.strength for guard in guards])
        put(self._recheck, [inf if g.recheck is None else g.recheck for g in guards])
        self._guarded[row] = bool(guards)
        self._rechecks[row] = any(guard.recheck is not None for guard in guards)

    def restart(self, row: int) -> None:
        """Forget what the guards of `row` have seen."""
        self._top[row] = 0.0
        self._valid[row] = True
        self._fired[row] = self._start[row] = -1
        self._generated[row] = 0

    def remove(self, row: int) -> None:
        """Forget the request on `row`."""
        self._carried[row] = False
        self._guarded[row] = self._rechecks[row] = False

    def readings(self, row: int) -> dict[str, Reading]:
        """What each carried guard has seen so far, by name."""
        carried, valid = self._carried[row].tolist(), self._valid[row].tolist()
        score = self._pooled(self._top[row]).tolist()
        threshold, fired = self._threshold[row].tolist(), self._fired[row].tolist()
        recheck, generated = self._recheck[row].tolist(), int(self._generated[row])
        decided = [generated if at < 0 else at for at in fired]
        return {
            name: Reading(
                score=score[i],
                threshold=recheck[i] if decided[i] and recheck[i] < inf else threshold[i],
                position=None if fired[i] < 0 else fired[i],
                valid=valid[i],
            )
            for name, i in self.bank.index.items()
            if carried[i]
        }

    def _pooled(self, top: Tensor) -> Tensor:
        return (top * self.bank.pool_weights).sum(-1)

    def _look(self, rows: Rows, gates: Tensor, limit: Tensor, real: Tensor | None = None) -> None:
        """Take in `gates [rows, tokens, guards]`, of the tokens up to where each row is by now.

        `limit [rows, guards]` is what the statistic is held against, inf for no look; `real [rows,
        tokens]` says which tokens are to be looked at, all where it is None.
        """
        invalid = ~gates.isfinite()
        if real is not None:
            invalid = invalid & real[..., None]
            gates = gates.masked_fill(~real[..., None], -torch.inf)
        seen = torch.cat([self._top[rows], gates.transpose(1, 2)], dim=-1)
        top = seen.topk(self.bank.pool, dim=-1).values
        score = self._pooled(top)
        carried, generated = self._carried[rows], self._generated[rows][:, None]
        looks = carried & (limit < torch.inf)
        first = looks & (score > limit) & (self._fired[rows] < 0)
        # a topic that turns up again in the answer starts the directions again
        rested = generated - self._start[rows] >= self.bank.rests
        again = looks & (self._fired[rows] >= 0) & rested & (gates[:, -1] > limit)
        self._top[rows] = torch.where(looks[..., None], top, self._top[rows])
        self._valid[rows] = self._valid[rows] & ~(invalid.any(1) & looks)
        self._fired[rows] = torch.where(first, generated, self._fired[rows])
        self._start[rows] = torch.where(first | again, generated, self._start[rows])

    def _live(self, rows: Rows, generated: Tensor) -> tuple[Tensor, Tensor]:
        """Which directions are due at the places `generated [rows, 1]`, and the age of each
        schedule, both `[rows, guards]`."""
        age = generated - self._start[rows]
        live = self._carried[rows] & self._acts[rows] & (self._start[rows] >= 0)
        return live & (age < self.bank.lengths), age
