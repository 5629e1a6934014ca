"""Guards on the rows of an engine that replays captured CUDA graphs.

A captured forward runs the same kernels on the same tensors each time, and none of its Python. So
all that a step changes stands in buffers that never move, which are filled before the graph runs:
for each token, its row, its step and its place in the cache. Tokens that pad the forward, and those
of rows without guards, belong to a row of nobody and to a place of nobody, behind the ends of the
tables. The bank has a fixed room, in which guards come and go by copying.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steering.hidden.bank import HiddenBank, NoRoom
from steering.hidden.packed import PackedTable
from steering.hidden.packed_forward import (
    DueGuards,
    EndedPrompts,
    PackedForward,
    residual_stream,
)
from steering.hidden.rows import ALL_SCORED, HostRows
from steering.hidden.slots import on_device


class CapturedTable(PackedTable):
    """A PackedTable that can also serve forwards of one token for each row, of at most `tokens`
    tokens with their padding, that replay a graph."""

    def __init__(
        self, bank: HiddenBank, capacity: int, places: int, most: int, tokens: int
    ) -> None:
        """`bank` needs room."""
        super().__init__(bank, capacity + 1, places + 1, most)
        self._nobody, self._nowhere = capacity, places
        device = bank.device
        self._row_and_step = torch.zeros(2, tokens, dtype=torch.long, device=device)
        self._place = torch.zeros(tokens, dtype=torch.long, device=device)
        self._image = torch.zeros(tokens, dtype=torch.bool, device=device)
        self._sums = torch.zeros(tokens, most, device=device)
        self._passed = torch.zeros(2, dtype=torch.long, device=device)
        """The number of the forward that was begun, and of the last one that has decided."""
        self._count = 0
        self._never = torch.full((), torch.inf, device=device)
        crowd = capacity * most
        if bank.columns > max(crowd, ALL_SCORED):
            self._active = torch.zeros(crowd, dtype=torch.long, device=device)
            self._places = torch.zeros_like(self._slots.column)
        self._shared, self._shared_places = self._active, self._places
        self._due: DueGuards | None = None
        self._acted_after = -1
        self._captured = self._neutral = False
        self.disengage()

    def persistent_tensors(self) -> list[Tensor]:
        """What a captured graph reads and writes."""
        own = [value for value in vars(self).values() if isinstance(value, Tensor)]
        return [*own, *self._slots.tensors(), *self.bank.tensors()]

    def widen(self, most: int) -> None:
        """Raises NoRoom for more guards on a row than there were at the start."""
        if most > self._slots.most:
            raise NoRoom(f"{most} guards on one request, and there is room for {self._slots.most}")

    def rebank(self, bank: HiddenBank) -> None:
        """Go on with the guards of another bank, copied over those of this one. Raises NoRoom, and
        ValueError where it lacks a guard that a row carries."""
        self._require_carried(bank)
        self.bank.take(bank)
        super().rebank(self.bank)

    def clear(self) -> None:
        """As `PackedTable.clear`."""
        super().clear()
        self._never.fill_(torch.inf)
        self._passed.zero_()
        if self._shared is not None:
            self._shared.zero_()
            self._shared_places.zero_()
        self._neutral = False
        self.disengage()

    # -- one forward pass -------------------------------------------------------------------------

    def disengage(self) -> None:
        """Let a captured forward that nobody begins, of no real token, pass over all rows."""
        self._captured = self.senses = self.acts = True
        self._active, self._places = self._shared, self._shared_places
        if not self._neutral:
            self._fill(np.zeros(0, np.int64), np.zeros(0, np.int64))
            self._neutral = True

    def begin(self, forward: PackedForward, *, captured: bool = False) -> None:
        """Start a forward, one that replays a graph where it is `captured`: then it has one token
        for each row."""
        if not captured:
            self._captured = False
            super().begin(forward)
            return
        rows, step = np.asarray(forward.rows), np.asarray(forward.first)
        if (np.asarray(forward.lengths) != 1).any():
            raise ValueError("a captured forward has one token for each row")
        guarded = self._guarded[rows]
        if not guarded.any():
            self.disengage()
            self.senses = self.acts = False
            return
        self._captured = self.senses = self.acts = True
        self._neutral = False
        self._catch_up(forward, rows, step)
        device = self.bank.device
        ends = np.flatnonzero(guarded & (step == 0))
        if (prompts := EndedPrompts.of(forward, ends, device)) is not None:
            # the graph adds the last token of a prompt to what stands in the cache of the others
            self._decide_prompts(prompts.without_last(), fires=False)
        row = np.where(guarded, rows, self._nobody)
        self._fill(row, np.where(guarded, step, -1), forward.places, forward.image)
        decided = guarded & ((step == 0) | self._rechecks[rows] & (step > 0))
        self._reached[rows[decided]] = step[decided]
        self._forget_snapshots(rows[decided])
        self._activate(rows)
        # the device knows whether that came true: see `snapshot`
        self.decided = True

    def _fill(
        self,
        row: NDArray[np.int64],
        step: NDArray[np.int64],
        places: Tensor | None = None,
        image: Tensor | None = None,
    ) -> None:
        """Fill the buffers with tokens; those behind them are nobody's."""
        values = np.empty(self._row_and_step.shape, np.int64)
        values[0], values[1] = self._nobody, -1
        values[:, : len(row)] = row, step
        self._row_and_step.copy_(on_device(values, self.bank.device))
        self._place.fill_(self._nowhere)
        if places is not None:
            owned = self._row_and_step[0, : len(row)] != self._nobody
            self._place[: len(row)] = torch.where(owned, places[: len(row)], self._nowhere)
        # a prompt may end with an image, of which only the last token was not in the cache
        self._image.zero_()
        if image is not None:
            self._image[: len(row)] = image
        self._sums.zero_()
        self._count += 1
        self._passed[0].fill_(self._count)

    def _activate(self, rows: HostRows) -> None:
        """As before; in buffers that stay where a forward is captured."""
        if not self._captured:
            super()._activate(rows)
            return
        self._active, self._places = self._shared, self._shared_places
        if self._active is not None:
            active, places = self._distinct(rows)
            padded = np.zeros(len(self._active), np.int64)
            padded[: len(active)] = active
            self._active.copy_(on_device(padded, self.bank.device))
            self._places.copy_(on_device(places, self.bank.device))

    def resume(self, scores: Tensor, layer: int) -> None:
        """As `PackedTable.resume`; of a captured forward, `scores` are of all its tokens."""
        if not self._captured:
            super().resume(scores, layer)
            return
        self._sums[: len(scores)].copy_(scores)
        for decision in self.bank.decisions:
            if decision < layer:
                self._decide_tokens(len(scores), decision)

    @property
    def scores(self) -> Tensor | None:
        """As `PackedTable.scores`."""
        if not self._captured:
            return super().scores
        return self._sums.clone() if self.senses else None

    def snapshot(self, rows: Sequence[int]) -> Tensor:
        """As `GuardedRows.snapshot`; nothing is valid where a graph has bypassed the decision."""
        fields = super().snapshot(rows)
        if self._captured and not self._neutral:
            fields[:, 3] *= self._passed[0] == self._passed[1]
        return fields

    # -- what a graph captures: no wait for the device, the same shapes for a number of tokens ----

    def sense(self, layer: int, hidden: Tensor, residual: Tensor | None = None) -> None:
        """As `PackedTable.sense`."""
        if not self._captured:
            super().sense(layer, hidden, residual)
            return
        count = hidden.shape[0]
        if count > len(self._place):
            raise ValueError(f"{count} tokens where graphs have at most {len(self._place)}")
        states = residual_stream(hidden, residual)
        self._sums[:count].add_(self._sense(layer, self._row_and_step[0, :count], states))
        if layer in self.bank.decisions:
            self._decide_tokens(count, layer)

    def _decide_tokens(self, count: int, layer: int) -> None:
        (rows, step), scores = self._row_and_step[:, :count], self._sums[:count]
        scores = self._counted(rows, scores, self._image[:count])
        self._due = None
        self._gates[self._place[:count]] = scores
        self._generated[rows] = step.clamp(min=0)
        slots, step = self._slots, step[:, None]
        limit = torch.where(step == 0, slots.threshold[rows], slots.recheck[rows])
        limit = torch.where(step >= 0, limit, self._never)
        self._inspect(rows, scores[:, None], limit, deciding=self._deciding(rows, layer))
        if layer == self.bank.last_decision:
            self._passed[1].copy_(self._passed[0])

    def act(self, layer: int, hidden: Tensor, residual: Tensor | None = None) -> None:
        """As `PackedTable.act`."""
        if not self._captured:
            super().act(layer, hidden, residual)
            return
        if self._due is None or layer <= self._acted_after:
            # the first layer to act after, of this forward
            rows, steps = self._row_and_step[:, : hidden.shape[0]]
            self._due = self._due_at(rows, steps, self._slots.most)
        self._acted_after = layer
        states = residual_stream(hidden, residual)
        hidden.copy_(self._changed(layer, hidden, states, self._due))
