"""The state of the hidden seam: the guards on each row of a running batch, and their statistics.

The statistic that is compared with the threshold is the mean of the guard's `pool` largest token
gates so far: over the prompt's tokens at prefill, and, where the row rechecks, over the generated
ones too. It only grows, costs one small product a token, and does not depend on where in the
prompt the topic occurs (a small model's last prompt token alone knows too little of it).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steering.hidden.bank import HiddenBank

Rows = slice | Tensor
"""Rows of the table: a slice, or the indices of different rows."""

HostRows = slice | NDArray[np.int64]
"""As `Rows`, known without the device."""


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

    def scaled(self, factor: float) -> RowGuard:
        """The same guard with its strength times `factor`."""
        return self if factor == 1.0 else replace(self, strength=self.strength * factor)


@dataclass(frozen=True)
class Reading:
    """The reading of one guard on one row.

    `position` is where the guard fired, 0 for the prompt and n for generated token n; None where it
    did not fire. `threshold` is the one in force where the guard fired, else the last one that the
    score was compared with.
    """

    score: float
    threshold: float
    position: int | None
    valid: bool

    @property
    def fired(self) -> bool:
        return self.position is not None


class BankChange:
    """Reorders state `[any, guards, ...]` of one bank for another."""

    def __init__(self, old: HiddenBank, new: HiddenBank) -> None:
        names = [name for name in new.index if name in old.index]
        self._from = torch.tensor([old.index[name] for name in names], dtype=torch.long)
        self._to = torch.tensor([new.index[name] for name in names], dtype=torch.long)
        self._guards, self._pool = len(new), new.pool

    def __call__(self, state: Tensor, fill: float | bool, *, pool: bool = False) -> Tensor:
        """The state in the order of the new bank; guards that are new get `fill`.

        `pool` says that the last dimension is the bank's pool; a guard of both banks uses no more
        of it than each has.
        """
        shape = [len(state), self._guards, *state.shape[2:]]
        if pool:
            shape[-1] = self._pool
        fresh = state.new_full(shape, fill)
        kept = state[:, self._from]
        if pool:
            kept = kept[..., : self._pool]
            fresh[:, self._to, : kept.shape[-1]] = kept
        else:
            fresh[:, self._to] = kept
        return fresh


class GuardedRows:
    """Per-row state `[capacity, guards]` for a bank. Not thread-safe: one forward at a time."""

    def __init__(self, bank: HiddenBank, capacity: int) -> None:
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
        """Generated tokens at the start of the current schedule, which may start again."""
        self._generated = torch.zeros(capacity, dtype=torch.long, device=device)
        # host-side mirrors: whether a forward has anything to do is known without a device sync
        self._guarded = np.zeros(capacity, bool)
        self._rechecks = np.zeros(capacity, bool)
        self._columns = [np.zeros(0, np.int64) for _ in range(capacity)]
        """The columns of a row's guards in the bank, in the row's order."""

    def add(self, row: int, guards: Sequence[RowGuard]) -> None:
        """Put a fresh request on `row`. Raises KeyError for a guard that is not in the bank."""
        columns = np.array([self.bank.index[guard.name] for guard in guards], np.int64)
        at = torch.from_numpy(columns).to(self.bank.device)
        self.remove(row)
        self.restart(row)
        self._columns[row] = columns

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
        """Reset the statistics and decisions of the guards of `row`."""
        self._top[row] = 0.0
        self._valid[row] = True
        self._fired[row] = self._start[row] = -1
        self._generated[row] = 0

    def remove(self, row: int) -> None:
        """Forget the request on `row`."""
        self._carried[row] = False
        self._guarded[row] = self._rechecks[row] = False
        self._columns[row] = np.zeros(0, np.int64)

    def readings(self, row: int) -> dict[str, Reading]:
        """The readings of the guards of `row` so far, by name."""
        names = [*self.bank.index]
        (readings,) = self.read([row])
        columns = self._columns[row]
        return {names[at]: reading for at, reading in zip(columns, readings, strict=True)}

    def read(self, rows: Sequence[int]) -> list[list[Reading]]:
        """The readings of the guards of these rows so far, in each row's order: one transfer from
        the device for all."""
        row, at = self._row_columns(rows)
        top, valid, fired = self._top[row, at], self._valid[row, at], self._fired[row, at]
        return self._readings_of(rows, row, at, top, valid, fired, self._generated[row])

    def _row_columns(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The row and the column in the bank of each guard on these rows."""
        columns = [self._columns[row] for row in rows]
        row = torch.from_numpy(np.repeat(np.asarray(rows, np.int64), [*map(len, columns)]))
        at = torch.from_numpy(np.concatenate([*columns, np.zeros(0, np.int64)]))
        return row.to(self.bank.device), at.to(self.bank.device)

    def _readings_of(
        self,
        rows: Sequence[int],
        row: Tensor,
        at: Tensor,
        top: Tensor,
        valid: Tensor,
        fired: Tensor,
        generated: Tensor,
    ) -> list[list[Reading]]:
        """The readings of `rows` from the state of their guards; `row` and `at` are as
        `_row_columns` gives them, and the state is in the same order."""
        recheck = self._recheck[row, at]
        decided = torch.where(fired < 0, generated, fired)
        fields = [
            (top * self.bank.pool_weights[at]).sum(-1),
            torch.where((decided > 0) & (recheck < inf), recheck, self._threshold[row, at]),
            fired,
            valid,
        ]
        # a double holds any of them exactly
        values = iter(torch.stack([field.double() for field in fields], 1).tolist())
        return [[_reading(*next(values)) for _ in self._columns[row]] for row in rows]

    def flags(self, rows: HostRows) -> tuple[list[bool], list[bool]]:
        """By row: whether a guard has fired so far, and whether one has met NaN.

        Costs no transfer from the device where no row is guarded.
        """
        guarded = self._guarded[rows]
        if not guarded.any():
            return [False] * len(guarded), [False] * len(guarded)
        at = self._on_device(rows)
        fired = (self._carried[at] & (self._fired[at] >= 0)).any(1)
        invalid = (self._carried[at] & ~self._valid[at]).any(1)
        return fired.tolist(), invalid.tolist()

    def check(self, rows: HostRows, logits: Tensor) -> None:
        """After a forward: mark guarded rows whose `logits [rows, vocabulary]` hold NaN as invalid.

        A guard that decides on the prompt alone would not notice that its change, or the model, has
        overflowed since.
        """
        if self._guarded[rows].any():
            nans, at = logits.amax(-1, keepdim=True).isnan(), self._on_device(rows)
            self._valid[at] &= ~(nans & self._carried[at])

    def _on_device(self, rows: HostRows) -> Rows:
        return rows if isinstance(rows, slice) else torch.from_numpy(rows).to(self.bank.device)

    def rebank(self, bank: HiddenBank) -> None:
        """Go on with another bank; the state of guards that both banks have is kept, by name.

        Raises ValueError where it lacks a guard that a row carries.
        """
        names = [*self.bank.index]
        carried = {at for row in np.flatnonzero(self._guarded) for at in self._columns[row]}
        if lost := sorted(names[at] for at in carried if names[at] not in bank.index):
            raise ValueError(f"rows carry guards that the new bank lacks: {', '.join(lost)}")
        move = BankChange(self.bank, bank)
        self._carried, self._acts = move(self._carried, False), move(self._acts, False)
        self._threshold, self._strength = move(self._threshold, 0), move(self._strength, 0)
        self._recheck = move(self._recheck, inf)
        self._top, self._valid = move(self._top, 0, pool=True), move(self._valid, True)
        self._fired, self._start = move(self._fired, -1), move(self._start, -1)
        for row in np.flatnonzero(self._guarded):
            columns = [bank.index[names[at]] for at in self._columns[row]]
            self._columns[row] = np.array(columns, np.int64)
        self.bank = bank

    def _pooled(self, top: Tensor) -> Tensor:
        return (top * self.bank.pool_weights).sum(-1)

    def _inspect(
        self,
        rows: Rows,
        scores: Tensor,
        limit: Tensor,
        real: Tensor | None = None,
        deciding: Tensor | None = None,
        *,
        fires: bool = True,
    ) -> None:
        """Add the `scores [rows, tokens, guards]` of new tokens to the statistics, and decide.

        The statistic is compared with `limit [rows, guards]`, inf for a guard that does not
        inspect these tokens; `real [rows, tokens]` marks the tokens to inspect, None for all of
        them, and `deciding [guards]` the guards that decide here, None for all of them. `fires`
        False keeps the statistics alone: the decision is taken with later tokens.
        """
        if deciding is not None:
            limit = limit.masked_fill(~deciding, inf)
        invalid = ~scores.isfinite()
        if real is not None:
            invalid = invalid & real[..., None]
            scores = scores.masked_fill(~real[..., None], -torch.inf)
        largest = torch.cat([self._top[rows], scores.transpose(1, 2)], dim=-1)
        top = largest.topk(self.bank.pool, dim=-1).values
        inspects = self._carried[rows] & (limit < torch.inf)
        self._top[rows] = torch.where(inspects[..., None], top, self._top[rows])
        self._valid[rows] = self._valid[rows] & ~(invalid.any(1) & inspects)
        if not fires:
            return
        score, generated = self._pooled(top), self._generated[rows][:, None]
        first = inspects & (score > limit) & (self._fired[rows] < 0)
        # a topic that recurs in the response starts the schedule again
        rested = generated - self._start[rows] >= self.bank.rests
        again = inspects & (self._fired[rows] >= 0) & rested & (scores[:, -1] > limit)
        self._fired[rows] = torch.where(first, generated, self._fired[rows])
        self._start[rows] = torch.where(first | again, generated, self._start[rows])

    def _live(self, rows: Rows, generated: Tensor) -> tuple[Tensor, Tensor]:
        """Which guards are due at the steps `generated [rows, 1]`, and the age of each schedule,
        both `[rows, guards]`."""
        age = generated - self._start[rows]
        live = self._carried[rows] & self._acts[rows] & (self._start[rows] >= 0)
        return live & (age < self.bank.lengths), age


def _reading(score: float, threshold: float, fired: float, valid: float) -> Reading:
    position = None if fired < 0 else int(fired)
    return Reading(score=score, threshold=threshold, position=position, valid=bool(valid))
