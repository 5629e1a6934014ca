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

from steering.hidden.bank import TOKENS, HiddenBank
from steering.hidden.slots import ENDLESS, Slots, on_device

Rows = slice | Tensor
"""Rows of the table: a slice, or the indices of different rows."""

ALL_SCORED = 64
"""Up to so many loaded guards, all are scored: to pick those that rows carry costs more."""

_TEXT, _IMAGE, _LAST = map(TOKENS.index, ("text", "image", "last"))

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
    score was compared with. `rewinds` counts how often the answer went back because the guard
    fired; `stuck`: it ended there, since it had been steered from there before.
    """

    score: float
    threshold: float
    position: int | None
    valid: bool
    rewinds: int = 0
    stuck: bool = False

    @property
    def fired(self) -> bool:
        return self.position is not None


class GuardedRows:
    """Per-row state of the guards of a bank. Not thread-safe: one forward at a time."""

    def __init__(self, bank: HiddenBank, capacity: int, most: int = 0) -> None:
        """`most` is the number of guards that a row has room for."""
        self.bank = bank
        self._slots = Slots(capacity, most, bank.pool, bank.device)
        self._generated = torch.zeros(capacity, dtype=torch.long, device=bank.device)
        # host-side mirrors: whether a forward has anything to do is known without a device sync
        self._guarded = np.zeros(capacity, bool)
        self._rechecks = np.zeros(capacity, bool)
        self._guards: list[tuple[str, ...]] = [()] * capacity
        """The names of a row's guards, in the row's order."""
        self._columns = np.zeros((capacity, most), np.int64)
        """Their columns in the bank, by slot."""
        self._active: Tensor | None = None
        self._places = self._slots.column

    def add(self, row: int, guards: Sequence[RowGuard]) -> None:
        """Put a fresh request on `row`. Raises KeyError for a guard that is not in the bank, and
        ValueError for more of them than a row has room for."""
        if len(guards) > self._slots.most:
            raise ValueError(f"a row has room for {self._slots.most} guards, not {len(guards)}")
        settings = [self._settings(guard) for guard in guards]
        self.remove(row)
        if settings:
            self.restart(row)
            self._slots.put(row, settings)
        self._guards[row] = tuple(guard.name for guard in guards)
        self._columns[row] = 0
        self._columns[row, : len(guards)] = [self.bank.index[name] for name in self._guards[row]]
        self._guarded[row] = bool(guards)
        self._rechecks[row] = any(guard.recheck is not None for guard in guards)

    def _settings(self, guard: RowGuard) -> Sequence[float]:
        column, placement = self.bank.index[guard.name], self.bank.placements[guard.name]
        own = (column, True, guard.acts, guard.threshold)
        recheck = inf if guard.recheck is None else guard.recheck
        steps = ENDLESS if placement.steps is None else placement.steps
        if not placement.act_layers:
            steps = 0  # nothing is due after a layer
        rest = steps if placement.rest is None else placement.rest
        tokens = TOKENS.index(placement.tokens)
        placed = (steps, rest, placement.decides, placement.pool, tokens)
        return (*own, recheck, guard.strength, *placed, placement.follow_up)

    def restart(self, row: int) -> None:
        """Reset the statistics and decisions of the guards of `row`."""
        self._slots.restart(row)
        self._generated[row] = 0

    def remove(self, row: int) -> None:
        """Forget the request on `row`."""
        if self._guarded[row]:
            self._slots.leave(row)
        self._guarded[row] = self._rechecks[row] = False
        self._guards[row] = ()
        self._columns[row] = 0

    def widen(self, most: int) -> None:
        """Make room for `most` guards on a row, where there is less."""
        self._slots.widen(most, self.bank.pool)
        missing = self._slots.most - self._columns.shape[1]
        self._columns = np.pad(self._columns, ((0, 0), (0, missing)))

    def readings(self, row: int) -> dict[str, Reading]:
        """The readings of the guards of `row` so far, by name."""
        (readings,) = self.read([row])
        return dict(zip(self._guards[row], readings, strict=True))

    def read(self, rows: Sequence[int]) -> list[list[Reading]]:
        """The readings of the guards of these rows so far, in each row's order: one transfer from
        the device for all."""
        return readings_of(self.snapshot(rows), self.counts(rows))

    def counts(self, rows: Sequence[int]) -> list[int]:
        """The number of guards on each of these rows."""
        return [len(self._guards[row]) for row in rows]

    def snapshot(self, rows: Sequence[int]) -> Tensor:
        """What `readings_of` reads, `[guards of all these rows, 4]`, float64, on the device, which
        nobody waits for."""
        row, slot = self._row_slots(rows)
        slots = self._slots
        top, valid, fired = slots.top[row, slot], slots.valid[row, slot], slots.fired[row, slot]
        return self._reading_fields(row, slot, top, valid, fired, self._generated[row])

    def _row_slots(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The row and the slot of each guard on these rows."""
        counts = self.counts(rows)
        row = np.repeat(np.asarray(rows, np.int64), counts)
        slot = np.concatenate([*map(np.arange, counts), np.zeros(0, np.int64)]).astype(np.int64)
        both = on_device(np.stack([row, slot]), self.bank.device)
        return both[0], both[1]

    def _reading_fields(
        self,
        row: Tensor,
        slot: Tensor,
        top: Tensor,
        valid: Tensor,
        fired: Tensor,
        generated: Tensor,
    ) -> Tensor:
        """As `snapshot`, from the state of guards on the slots `slot` of `row`."""
        slots = self._slots
        recheck = slots.recheck[row, slot]
        decided = torch.where(fired < 0, generated, fired)
        fields = [
            (top * slots.weights[row, slot]).sum(-1),
            torch.where((decided > 0) & (recheck < inf), recheck, slots.threshold[row, slot]),
            fired,
            valid,
        ]
        # a double holds any of them exactly
        return torch.stack([field.double() for field in fields], 1)

    def excess(self, rows: Sequence[int]) -> Tensor:
        """How far the statistics of the guards of these rows exceed the lowest threshold that they
        are compared with, `[rows, most]`, at most 0 in slots that nobody uses.

        With the graph, where the states that were sensed had one.
        """
        at, slots = on_device(np.asarray(rows, np.int64), self.bank.device), self._slots
        score = (slots.top[at] * slots.weights[at]).sum(-1)
        excess = score - torch.minimum(slots.threshold[at], slots.recheck[at])
        return excess.where(slots.carried[at], torch.zeros_like(excess))

    def flags(self, rows: HostRows) -> tuple[list[bool], list[bool]]:
        """By row: whether a guard has fired so far, and whether one has met NaN.

        Costs one transfer from the device, and none where no row is guarded.
        """
        guarded = self._guarded[rows]
        if not guarded.any():
            return [False] * len(guarded), [False] * len(guarded)
        fired, invalid = torch.stack(self._flags_at(self._on_device(rows))).tolist()
        return fired, invalid

    def _flags_at(self, at: slice | Tensor) -> tuple[Tensor, Tensor]:
        """`flags` of the rows `at`, on the device."""
        slots = self._slots
        fired = (slots.carried[at] & (slots.fired[at] >= 0)).any(1)
        return fired, (slots.carried[at] & ~slots.valid[at]).any(1)

    def check(self, rows: HostRows, logits: Tensor) -> None:
        """After a forward: mark guarded rows whose `logits [rows, vocabulary]` hold NaN as invalid.

        A guard that decides on the prompt alone would not notice that its change, or the model, has
        overflowed since.
        """
        if self._guarded[rows].any():
            nans, at = logits.amax(-1, keepdim=True).isnan(), self._on_device(rows)
            self._slots.valid[at] &= ~(nans & self._slots.carried[at])

    def _on_device(self, rows: HostRows) -> Rows:
        return rows if isinstance(rows, slice) else on_device(rows, self.bank.device)

    def rebank(self, bank: HiddenBank) -> None:
        """Go on with another bank; rows keep their state, by the names of their guards.

        Raises ValueError where it lacks a guard that a row carries.
        """
        self._require_carried(bank)
        self._slots.widen(0, bank.pool)
        self._columns = np.zeros(self._slots.column.shape, np.int64)
        for row, names in enumerate(self._guards):
            self._columns[row, : len(names)] = [bank.index[name] for name in names]
        self._slots.column.copy_(on_device(self._columns, bank.device))
        self.bank = bank

    def _require_carried(self, bank: HiddenBank) -> None:
        carried = {name for names in self._guards for name in names}
        if lost := sorted(carried - bank.index.keys()):
            raise ValueError(f"rows carry guards that the new bank lacks: {', '.join(lost)}")

    def _activate(self, rows: HostRows) -> None:
        """Let `_sense` score only guards that these rows carry, where many are loaded."""
        self._active, self._places = None, self._slots.column
        if self.bank.columns <= ALL_SCORED:
            return
        active, places = self._distinct(rows)
        device = self.bank.device
        self._active, self._places = on_device(active, device), on_device(places, device)

    def _distinct(self, rows: HostRows) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The columns of the guards that these rows carry, at least one, and for each row of the
        table and slot the place of its column among them."""
        columns = self._columns[rows]
        active = np.unique(columns)
        places = np.zeros_like(self._columns)
        places[rows] = np.searchsorted(active, columns)
        return active, places

    def _sense(self, layer: int, rows: Rows, states: Tensor) -> Tensor:
        """The scores `[rows, ..., most]` of the guards on `rows` for `states [rows, ..., width]`,
        by slot; anything in a slot that nobody uses."""
        scores = self.bank.sense(layer, states, self._active)
        columns = self._places[rows]
        shape = (len(columns), *[1] * (scores.ndim - 2), columns.shape[1])
        return scores.gather(-1, columns.view(shape).expand(*scores.shape[:-1], -1))

    def _counted(self, rows: Rows, scores: Tensor, image: Tensor | None) -> Tensor:
        """`scores [rows, ..., most]` with 0 for tokens that a guard passes over, by whether they
        are an image's: `image [rows, ...]`, None where none is.

        A zero is what the statistic has in place of missing tokens. Guards of the last token are
        left as they are: see `_only_last`.
        """
        if not self.bank.selective:
            return scores
        kind = self._slots.tokens[rows]
        kind = kind.view(len(kind), *[1] * (scores.ndim - 2), kind.shape[1])
        if image is None:
            return scores.masked_fill(kind == _IMAGE, 0.0)
        of_image = image[..., None]
        passed = (kind == _IMAGE) & ~of_image | (kind == _TEXT) & of_image
        return scores.masked_fill(passed, 0.0)

    def _only_last(self, rows: Rows, scores: Tensor, last: Tensor) -> Tensor:
        """`scores [rows, tokens, most]` of a prompt with 0 where a guard of the last token would
        score another one; `last [rows, tokens]` marks it."""
        if not self.bank.selective:
            return scores
        passed = (self._slots.tokens[rows] == _LAST)[:, None] & ~last[..., None]
        return scores.masked_fill(passed, 0.0)

    def _deciding(self, rows: Rows, layer: int) -> Tensor | None:
        """The slots `[rows, most]` whose guards decide at `layer`; None for all of them."""
        return None if len(self.bank.decisions) == 1 else self._slots.decides[rows] == layer

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
        """Add the `scores [rows, tokens, most]` of new tokens to the statistics, and decide.

        The statistic is compared with `limit [rows, most]`, inf for a guard that does not inspect
        these tokens; `real [rows, tokens]` marks the tokens to inspect, None for all of them, and
        `deciding [rows, most]` the guards that decide here, None for all of them. `fires` False
        keeps the statistics alone: the decision is taken with later tokens.
        """
        slots = self._slots
        if deciding is not None:
            limit = limit.masked_fill(~deciding, inf)
        invalid = ~scores.isfinite()
        if real is not None:
            invalid = invalid & real[..., None]
            scores = scores.masked_fill(~real[..., None], -torch.inf)
        before = slots.top[rows]
        top = torch.cat([before, scores.transpose(1, 2)], dim=-1).topk(before.shape[-1]).values
        # inf in slots that nobody uses, too
        inspects = limit < torch.inf
        slots.top[rows] = torch.where(inspects[..., None], top, before)
        slots.valid[rows] = slots.valid[rows] & ~(invalid.any(1) & inspects)
        if not fires:
            return
        score, generated = (top * slots.weights[rows]).sum(-1), self._generated[rows][:, None]
        fired, start = slots.fired[rows], slots.start[rows]
        first = inspects & (score > limit) & (fired < 0)
        # a topic that recurs in the response starts the schedule again
        rested = generated - start >= slots.rest[rows]
        again = inspects & (fired >= 0) & rested & (scores[:, -1] > limit)
        slots.fired[rows] = torch.where(first, generated, fired)
        slots.start[rows] = torch.where(first | again, generated, start)

    def _live(
        self, rows: Rows, generated: Tensor, start: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Which guards are due at the steps `generated [rows, 1]`, and the age of each schedule,
        both `[rows, most]`; `start` is that of the slots where it is None."""
        slots = self._slots
        start = slots.start[rows] if start is None else start
        age = generated - start
        return slots.acts[rows] & (age >= 0) & (age < slots.length[rows]), age


def readings_of(snapshot: Tensor, counts: Sequence[int]) -> list[list[Reading]]:
    """The readings of rows that carry so many guards each, from a snapshot of them."""
    values = iter(snapshot.tolist())
    return [[_reading(*next(values)) for _ in range(count)] for count in counts]


def _reading(score: float, threshold: float, fired: float, valid: float) -> Reading:
    position = None if fired < 0 else int(fired)
    return Reading(score=score, threshold=threshold, position=position, valid=bool(valid))
