"""Guards on the rows of an engine that pads its prompts: the table that the hidden seam consults.

Rows are added, moved and removed by the engine's scheduler; one forward pass is `begin`, then
`sense` and `act` layer by layer. Every operation is over all rows and all guards at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import starmap
from math import isnan
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from steering.engines.errors import Unfollowed
from steering.hidden.bank import HiddenBank, bounded
from steering.hidden.rows import GuardedRows, HostRows, Reading, RowGuard
from steering.hidden.slots import NEVER, on_device


def without_sink(real: Tensor) -> Tensor:
    """The tokens to sense, of a prompt's `real [rows, tokens]`: all but each row's first.

    The first token is the attention sink: its state is huge and carries no information. A row of
    one token keeps it.
    """
    first = real.long().cumsum(1) == 1
    lone = real.sum(1, keepdim=True) == 1
    return real & (~first | lone)


def require_tokens(hidden: Tensor, shape: Sequence[int]) -> None:
    """Raise Unfollowed where a decoder layer runs other tokens than the input's `[rows, tokens]`,
    as models do that put in those of images themselves."""
    if hidden.shape[:2] != tuple(shape):
        raise Unfollowed(
            f"the decoder runs {hidden.shape[0]} x {hidden.shape[1]} tokens where the input has "
            f"{shape[0]} x {shape[1]}: guards cannot act on a model that puts in tokens of its own"
        )


TokenScores = Mapping[str, float]
"""Guard → its score of one token; empty for a token that no guard reads: padding, the first one."""


class EarlierTurns(NamedTuple):
    """The tokens `[rows, tokens]` of a forward that stand before the last turns of its rows;
    `end`: those turns begin in this forward."""

    tokens: Tensor
    end: bool


class RowFlags(NamedTuple):
    """`fired`, `invalid`: a guard of the row has fired, has met NaN, in this forward or before;
    `steered`: one that acts has fired. `started`: one that acts has begun to, or begun anew, at the
    generated token that this forward has read."""

    fired: bool = False
    invalid: bool = False
    started: bool = False
    steered: bool = False


class Table(GuardedRows):
    """Rows whose forwards are padded: prompts, whole or in parts, then one token a row.

    A guard decides at the end of a prompt, on all its tokens, and acts at the last one.
    """

    def __init__(self, bank: HiddenBank, capacity: int) -> None:
        super().__init__(bank, capacity)
        self._steering = np.zeros(capacity, bool)
        # rows whose next token has been read before, which must not count twice
        self._again = np.zeros(capacity, bool)
        self._shows = np.zeros(capacity, bool)
        self._shown: dict[int, list[TokenScores]] = {}
        """Row → the scores of the tokens that it has read and nobody has taken."""
        self._mask: Tensor | None = None
        self._fresh: Tensor | None = None
        self.senses = self.acts = False
        """Whether the current forward has any row to sense, any row to act on."""

    # -- rows, as a scheduler moves them --------------------------------------------------------

    def add(self, row: int, guards: Sequence[RowGuard]) -> None:
        """Put a fresh request on `row`. Raises KeyError for a guard that is not in the bank."""
        self.widen(len(guards))
        super().add(row, guards)

    def move(self, source: int, target: int) -> None:
        """Let the request on row `source` live on row `target` from now on."""
        for state in (*self._slots.tensors(), self._generated):
            state[target] = state[source]
        for mirror in (self._guarded, self._rechecks, self._steering, self._again, self._shows):
            mirror[target] = mirror[source]
        if source in self._shown:
            self._shown[target] = self._shown.pop(source)
        self._guards[target] = self._guards[source]
        self._columns[target] = self._columns[source]
        self.remove(source)

    def remove(self, row: int) -> None:
        """Forget the request on `row`."""
        super().remove(row)
        self._steering[row] = self._again[row] = self._shows[row] = False
        self._shown.pop(row, None)

    def show(self, row: int) -> None:
        """Keep the scores of each token that the request on `row` reads, for `take_scores`: of
        generated tokens too, and of guards that decide on the prompt alone. Nothing else changes.

        Costs a transfer from the device in each forward of such a row.
        """
        self._shows[row] = self._guarded[row]

    @property
    def keeps_scores(self) -> bool:
        """Whether there is anything to take."""
        return bool(self._shown)

    def take_scores(self, row: int) -> list[TokenScores]:
        """The scores that have been kept for `row` since they were last taken."""
        return self._shown.pop(row, [])

    def rewind(self, row: int, back: int) -> None:
        """Let the request on `row` go `back` generated tokens back; the first of them is read again
        by the next forward. Guards that have begun to act behind it begin to act there."""
        self._generated[row] -= back
        resumed, start = self._generated[row] + 1, self._slots.start
        behind = (start[row] > resumed) & (start[row] < NEVER)
        self._slots.rewinds[row] += behind
        start[row] = torch.where(behind, resumed, start[row])
        self._steering[row], self._again[row] = True, True

    def readings(self, row: int) -> dict[str, Reading]:
        """The readings of the guards of `row` so far, by name."""
        readings = super().readings(row)
        if self._rechecks[row]:
            counts = zip(readings, self._slots.rewinds[row].tolist(), strict=False)
            readings = {name: replace(readings[name], rewinds=count) for name, count in counts}
        return readings

    def row_flags(self, rows: HostRows) -> list[RowFlags]:
        """What has happened to each of the rows of the last forward.

        Costs one transfer from the device, and none where no row is guarded.
        """
        guarded = self._guarded[rows]
        if not guarded.any():
            return [RowFlags()] * len(guarded)
        at, slots = self._on_device(rows), self._slots
        fired, invalid = self._flags_at(at)
        acts = slots.acts[at]
        steered = (acts & (slots.fired[at] >= 0)).any(1)
        started = torch.zeros_like(fired)
        if not self._prompt and self._rechecks[rows].any():
            begun = acts & (slots.start[at] == self._generated[at][:, None])
            started = (begun if self._fresh is None else begun & self._fresh).any(1)
        return [*starmap(RowFlags, torch.stack([fired, invalid, started, steered], 1).tolist())]

    def fired_overlays(self, rows: HostRows) -> dict[int, list[tuple[str, float]]]:
        """Of those of `rows` on which guards with overlays have fired and act, by their places: the
        names and the strengths of these.

        Costs one transfer from the device where a row carries such guards, and else none.
        """
        overlays = self.bank.overlays
        if not overlays:
            return {}
        numbers = np.arange(len(self._guards))[rows]
        carried = [
            place
            for place, row in enumerate(numbers)
            if not overlays.keys().isdisjoint(self._guards[row])
        ]
        if not carried:
            return {}
        at, slots = on_device(numbers[carried], self.bank.device), self._slots
        acting = slots.acts[at] & (slots.fired[at] >= 0)
        strengths = torch.where(acting, slots.strength[at], torch.nan).tolist()
        fired = {
            place: [
                (name, strength)
                for name, strength in zip(self._guards[numbers[place]], row, strict=False)
                if name in overlays and not isnan(strength)
            ]
            for place, row in zip(carried, strengths, strict=True)
        }
        return {place: guards for place, guards in fired.items() if guards}

    # -- one forward pass -------------------------------------------------------------------------

    def begin_again(self, rows: HostRows, *, ends: bool = True) -> None:
        """Start a forward that reads prompts again, or the last part of them, on which the guards
        have decided: they act as they did, and sense nothing. `ends` as in `begin`."""
        self._rows, self._host_rows, self._mask = self._on_device(rows), rows, None
        self._prompt, self._ends, self._fresh = True, ends, None
        self.senses = False
        self.acts = ends and bool(self._steering[rows].any())
        if self.acts:
            self._schedule()

    def begin(
        self,
        rows: HostRows,
        mask: Tensor | None,
        *,
        ends: bool = True,
        image: Tensor | None = None,
        earlier: EarlierTurns | None = None,
    ) -> None:
        """Start a forward over `rows`.

        `mask [rows, tokens]` marks the tokens of a prompt to decide on; None means that each row
        processes the token it has just generated. `earlier` are those that only lower thresholds.
        `image [rows, tokens]` marks the placeholder tokens of images, None where there is none.
        `ends` False says that the rest of the prompt follows in later forwards: no guard decides or
        acts before.
        """
        self._rows, self._host_rows, self._mask = self._on_device(rows), rows, mask
        self._image, self._earlier = image, earlier
        self._prompt, self._ends = mask is not None, ends
        self._fresh = None
        if not self._prompt and self._again[rows].any():
            self._fresh = torch.from_numpy(~self._again[rows]).to(self.bank.device)[:, None]
            self._again[rows] = False
        sensed = self._guarded if self._prompt else self._rechecks | self._shows
        self.senses = bool(sensed[rows].any())
        self.acts = bool(self._steering[rows].any())
        self._scores: Tensor | None = None
        if self.senses:
            self._activate(rows)
        if not self._prompt:
            self._generated[self._rows] += 1
        if self.acts and not self.senses:
            self._schedule()

    def sense(self, layer: int, hidden: Tensor) -> None:
        """Sense `hidden [rows, tokens, width]` after `layer`. Guards whose last sensing layer this
        is decide.

        Raises Unfollowed where the model runs other tokens than those of its input.
        """
        if self._mask is not None:
            require_tokens(hidden, self._mask.shape)
        scores = self._sense(layer, self._rows, hidden.float())
        self._scores = scores if self._scores is None else self._scores + scores
        if layer in self.bank.decisions:
            self._decide(self._scores, layer)

    def act(self, layer: int, hidden: Tensor) -> Tensor:
        """Make the changes that are due at the last token of `hidden [rows, tokens, width]`.

        Rows with nothing due come back bit-identical.
        """
        last = hidden[:, -1]
        states = last[self._due_row].float()
        changes = self.bank.act(layer, states, self._due_guard, self._due_age, self._due_strength)
        delta = torch.zeros(hidden.shape[0], hidden.shape[2], device=hidden.device)
        delta.index_add_(0, self._due_row, changes)
        longest = torch.zeros(len(delta), device=hidden.device)
        longest.scatter_reduce_(0, self._due_row, changes.norm(dim=-1), "amax")
        delta = bounded(delta, longest)
        steered = hidden.clone()
        steered[:, -1] = torch.where(self._acting_at(layer), last + delta.to(last.dtype), last)
        return steered

    def _acting_at(self, layer: int) -> Tensor:
        """`[rows, 1]`: the rows in which something is due at `layer`."""
        guards = self.bank.acting[layer]
        if guards is None:
            return self._acting
        count = torch.zeros(len(self._acting), dtype=torch.long, device=guards.device)
        count.index_add_(0, self._due_row, guards[self._due_guard].long())
        return count[:, None] > 0

    def _decide(self, scores: Tensor, layer: int) -> None:
        rows, slots = self._rows, self._slots
        scores = self._counted(rows, scores, self._image)
        if self._mask is not None and self.bank.selective:
            last = torch.zeros_like(self._mask)
            last[:, -1] = self._ends
            scores = self._only_last(rows, scores, last)
        deciding = self._deciding(rows, layer)
        if layer == self.bank.last_decision and self._shows[self._host_rows].any():
            self._show(scores)
        if self._earlier is not None:
            self._read_earlier(self._earlier, scores, deciding)
        limit = slots.threshold[rows] if self._prompt else slots.recheck[rows]
        real = self._mask if self._prompt else self._fresh
        self._inspect(rows, scores, limit, real, deciding, fires=self._ends)
        if self._ends:
            self._schedule()

    def _show(self, scores: Tensor) -> None:
        """Keep `scores [rows, tokens, most]` of the rows that show them."""
        numbers = np.arange(len(self._guards))[self._host_rows]
        places = np.flatnonzero(self._shows[numbers])
        counted = None
        if self._mask is not None:
            earlier = self._earlier.tokens if self._earlier is not None else False
            counted = (self._mask | earlier)[on_device(places, scores.device)].tolist()
        found = scores[on_device(places, scores.device)].tolist()
        for i, row in enumerate(numbers[places].tolist()):
            names = self._guards[row]
            self._shown.setdefault(row, []).extend(
                dict(zip(names, token, strict=False)) if counted is None or counted[i][j] else {}
                for j, token in enumerate(found[i])
            )

    def _read_earlier(self, earlier: EarlierTurns, scores: Tensor, deciding: Tensor | None) -> None:
        """Let the statistics, which are of earlier turns alone, lower the thresholds of guards
        that they are over, and begin anew with the last turn."""
        rows, slots = self._rows, self._slots
        threshold = slots.threshold[rows]
        self._inspect(rows, scores, threshold, earlier.tokens, deciding, fires=False)
        if not earlier.end:
            return
        top = slots.top[rows]
        decides = torch.ones_like(threshold, dtype=torch.bool) if deciding is None else deciding
        over = decides & ((top * slots.weights[rows]).sum(-1) > threshold)
        lower = torch.minimum(threshold, threshold * slots.follow_up[rows])
        slots.threshold[rows] = torch.where(over, lower, threshold)
        slots.top[rows] = top.masked_fill(decides[..., None], 0.0)

    def _schedule(self) -> None:
        """Find the pairs of a row and a guard that are due in this forward."""
        rows = self._rows
        due, age = self._live(rows, self._generated[rows][:, None])
        self._acting = due.any(1, keepdim=True)
        self._due_row, slot = due.nonzero(as_tuple=True)
        self._due_guard = self._slots.column[rows][self._due_row, slot]
        self._due_age = age[self._due_row, slot]
        self._due_strength = self._slots.strength[rows][self._due_row, slot]
        self._steering[self._host_rows] = self._acting[:, 0].tolist()
        self.acts = bool(self._steering[self._host_rows].any())
