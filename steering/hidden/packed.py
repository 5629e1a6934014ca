"""Guards on requests that are packed end to end, a forward holding any stretch of each: vLLM's way.

A token's *step* is its place in the request, counted from the prompt's last token: that is step 0,
what stands before it has negative ones, the n-th generated token is step n. A forward may hold a
part of a prompt, all of it, generated tokens, several drafts of them, or, where a request was
preempted, everything once more.

What statistics are made of is kept beside the cache of keys and values, place by place
(`Packed.places`): wherever a token's keys are there already, its gates are too, whoever computed
them, as part of a prompt or of an answer. One decision is taken at step 0, whatever of the prompt
was computed when; and where a request comes back behind it, since all before stands in the cache,
what was decided is gone through once more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steering.hidden.bank import Bank
from steering.hidden.rows import GuardedRows, Moved, Reading, RowGuard, Rows


@dataclass(frozen=True)
class Packed:
    """One forward: stretch i holds `lengths[i]` tokens of row `rows[i]`, the first at step
    `first[i]`, of a request whose prompt has `prompts[i]` tokens.

    `places [tokens]` says where in the cache each token's keys go, `before(i, n)` where those of
    the first n tokens of the request of stretch i stand.
    """

    rows: Sequence[int]
    lengths: Sequence[int]
    first: Sequence[int]
    prompts: Sequence[int]
    places: Tensor
    before: Callable[[int, int], Tensor]


class PackedTable(GuardedRows):
    """Rows of a packed batch: `places` is how many tokens the cache of keys has room for, `most`
    how many guards a row carries at most."""

    def __init__(self, bank: Bank, capacity: int, places: int, most: int) -> None:
        super().__init__(bank, capacity)
        self._kept = torch.full((places, most), torch.nan, device=bank.device)
        """The gates of guarded tokens by their place in the cache, for the guards of their row in
        its order: who finds a place in the cache carries the same. NaN where nobody sensed, so
        that what is decided without them counts as failed."""
        self._at = torch.full((capacity, most), len(bank), device=bank.device)
        """Where the guards of a row stand in the bank, behind its end for those that it lacks."""
        self._acting = np.zeros(capacity, np.int64)
        """How many guards of a row act."""
        self._reached = np.full(capacity, -1)
        """The last step that was decided."""
        self._undo: dict[int, _Drafted] = {}
        self.senses = self.acts = False
        """Whether the forward under way has any token to sense, any to act on."""
        self.decided = False
        """Whether it has come to the last sensing layer."""

    def add(self, row: int, guards: Sequence[RowGuard]) -> None:
        """Put a fresh request on `row`. Raises KeyError for a guard that is not in the bank, and
        ValueError for too many."""
        if len(guards) > self._at.shape[1]:
            raise ValueError(f"a row has room for {self._at.shape[1]} guards, not {len(guards)}")
        super().add(row, guards)
        self._place(row)
        self._acting[row] = sum(guard.acts for guard in guards)

    def restart(self, row: int) -> None:
        """Forget what the guards of `row` have seen."""
        super().restart(row)
        self._reached[row] = -1
        self._undo.pop(row, None)

    def remove(self, row: int) -> None:
        """Forget the request on `row`."""
        super().remove(row)
        self._acting[row] = 0
        self._undo.pop(row, None)

    def widen(self, most: int) -> None:
        """Make room for so many guards a row, where there is less."""
        capacity, there = self._at.shape
        if most > there:
            wider = self._kept.new_full((len(self._kept), most - there), torch.nan)
            self._kept = torch.cat([self._kept, wider], 1)
            self._at = self._at.new_empty(capacity, most)
            self._place_all()

    def rebank(self, bank: Bank) -> None:
        """Go on with another bank. Raises ValueError where it lacks a guard that a row carries."""
        move = Moved(self.bank, bank)
        super().rebank(bank)
        self._place_all()
        for drafted in self._undo.values():
            drafted.states = [(at, _moved(move, states)) for at, states in drafted.states]

    def _place_all(self) -> None:
        for row in range(len(self._at)):
            self._place(row)

    def _place(self, row: int) -> None:
        own = torch.from_numpy(self._columns[row]).to(self.bank.device)
        self._at[row] = len(self.bank)
        self._at[row, : len(own)] = own

    def copy(self, source: Rows, target: Rows) -> None:
        """Places of the cache are copied, and what is kept of them goes along."""
        self._kept[target] = self._kept[source]

    # -- one forward pass -------------------------------------------------------------------------

    def begin(self, packed: Packed) -> None:
        """Start a forward. What it neither `senses` nor `acts` on needs nothing more."""
        rows, first = np.asarray(packed.rows), np.asarray(packed.first)
        lengths = np.asarray(packed.lengths)
        done = self._reached[rows]
        for i in np.flatnonzero((done >= 0) & (first <= done)):
            self._rewind(int(rows[i]), int(first[i]))
        for i in np.flatnonzero(self._guarded[rows] & (self._reached[rows] < 0) & (first > 0)):
            prompt, step = packed.prompts[int(i)], int(first[i])
            self._replay(int(rows[i]), packed.before(int(i), prompt + step - 1), prompt)
        row = rows.repeat(lengths)
        step = np.arange(len(row)) - (lengths.cumsum() - lengths - first).repeat(lengths)
        guarded = self._guarded[row]
        acted = (self._acting[row] > 0) & (step >= 0)
        self.senses, self.acts = bool(guarded.any()), bool(acted.any())
        self.decided = False
        if not (self.senses or self.acts):
            return
        device = self.bank.device

        def on_device(values: NDArray[np.int64]) -> Tensor:
            return torch.from_numpy(values).to(device)

        sensed = np.flatnonzero(guarded)
        self._sensed, self._askers = on_device(sensed), on_device(row[sensed])
        self._places = packed.places[self._sensed]
        ends = np.flatnonzero((first <= 0) & (first + lengths > 0) & self._guarded[rows])
        self._prompts = {int(rows[i]): packed.before(i, packed.prompts[i]) for i in ends.tolist()}
        # of what a row has generated here: its first token, its second one, ...
        nth = (step - np.maximum(first, 1).repeat(lengths))[sensed]
        nth[~(self._rechecks[row] & (step > 0))[sensed]] = -1
        at = np.flatnonzero(acted)
        self._acted, self._owners = on_device(at), on_device(row[at])
        self._steps, self._width = on_device(step[at]), int(self._acting[row].max())
        among = np.full(len(row), -1)
        among[at] = np.arange(len(at))
        self._answers = [
            _Answers(row[own], step[own], on_device(place), among[own])
            for count in range(int(nth.max(initial=-1)) + 1)
            if len(own := sensed[place := np.flatnonzero(nth == count)])
        ]
        self._started: Tensor | None = None
        self._gates: Tensor | None = None
        self._due: tuple[Tensor, Tensor, Tensor] | None = None

    def decides(self, rows: Sequence[int], last: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Of rows whose stretches end with the steps `last`: whether anything was decided there."""
        own = np.asarray(rows)
        found: NDArray[np.bool_] = self._guarded[own] & (
            (last == 0) | self._rechecks[own] & (last > 0)
        )
        return found

    def carry(self, gates: Tensor, *, whole: bool) -> None:
        """Go on with the `gates [sensed tokens, guards]` of the layers that another worker has run;
        `whole`: those of all that are sensed, so that it is for this one to decide."""
        self._gates = gates
        if whole:
            self._decide(gates)

    @property
    def gates(self) -> Tensor | None:
        """What `carry` takes, of the forward that is over; None where nothing was sensed."""
        return self._gates if self.senses else None

    def sense(self, layer: int, hidden: Tensor, residual: Tensor | None = None) -> None:
        """Read `hidden [tokens, width]` after `layer`, and what is still to be added to it; at the
        last sensing layer, decide."""
        states = hidden[self._sensed].float()
        if residual is not None:
            states = states + residual[self._sensed]
        gates = states @ self.bank.gates[layer].T
        self._gates = gates if self._gates is None else self._gates + gates
        if layer == self.bank.last_sense:
            self._decide(self._gates)

    def act(self, layer: int, hidden: Tensor) -> None:
        """Add the directions that are due to `hidden [tokens, width]`, in place.

        Tokens with nothing due keep their bits.
        """
        if self._due is None:
            self._due = self._schedule()
        direction, strength, any_due = self._due
        delta = (self.bank.directions[layer][direction] * strength[..., None]).sum(1)
        own = hidden[self._acted]
        hidden[self._acted] = torch.where(any_due, own + delta.to(own.dtype), own)

    def spoil(self, rows: Sequence[int]) -> None:
        """Let what the guards of these rows have seen count as failed."""
        self._valid[[*rows]] = False

    def _decide(self, gates: Tensor) -> None:
        self.decided = True
        own = self._at[self._askers].clamp(max=len(self.bank) - 1)
        self._kept[self._places] = gates.gather(1, own)
        if self._prompts:
            self._decide_prompts(self._prompts)
        self._started = self._start[self._owners]
        drafts: dict[int, list[tuple[int, tuple[Tensor, ...]]]] = {}
        for answers in self._answers:
            rows = torch.from_numpy(answers.rows).to(gates.device)
            states = tuple(state[rows] for state in self._states())
            for i, row in enumerate(answers.rows.tolist() if len(self._answers) > 1 else ()):
                drafts.setdefault(row, []).append((i, states))
            self._generated[rows] = torch.from_numpy(answers.steps).to(gates.device)
            self._look(rows, gates[answers.at][:, None], self._recheck[rows])
            self._reached[answers.rows] = answers.steps
            # a schedule may start again at each of several tokens here
            acts = answers.acted >= 0
            acted = torch.from_numpy(answers.acted[acts]).to(gates.device)
            self._started[acted] = self._start[rows[torch.from_numpy(acts).to(gates.device)]]
        for row, states_of in drafts.items():
            self._undo[row] = _Drafted(int(self._reached[row]) + 1 - len(states_of), states_of)

    def _decide_prompts(self, prompts: Mapping[int, Tensor]) -> None:
        """`prompts`: where those of each row stand."""
        device = self._kept.device
        longest = max(len(own) for own in prompts.values())
        places = torch.zeros(len(prompts), longest, dtype=torch.long, device=device)
        real = torch.zeros_like(places, dtype=torch.bool)
        for i, own in enumerate(prompts.values()):
            places[i, longest - len(own) :] = own
            # the first token is the attention's sink: its state is huge and says nothing
            real[i, longest - max(len(own) - 1, 1) :] = True
        rows = torch.tensor([*prompts], device=device)
        self._look(rows, self._at_places(rows, places), self._threshold[rows], real)
        self._reached[[*prompts]] = 0

    def _at_places(self, rows: Tensor, places: Tensor) -> Tensor:
        """The gates `[rows, tokens, guards]` kept at `places [rows, tokens]`; least where a row
        does not carry the guard."""
        kept = self._kept[places]
        gates = kept.new_full((*places.shape, len(self.bank) + 1), -torch.inf)
        gates.scatter_(2, self._at[rows][:, None].expand_as(kept), kept)
        return gates[..., :-1]

    def _replay(self, row: int, places: Tensor, prompt: int) -> None:
        """Decide once more on all that stands in the cache: a prompt, and tokens behind it."""
        self._decide_prompts({row: places[:prompt]})
        at = torch.tensor([row], device=self._kept.device)
        for step in range(1, len(places) - prompt + 1) if self._rechecks[row] else ():
            self._generated[row] = self._reached[row] = step
            gates = self._at_places(at, places[None, prompt + step - 1 : prompt + step])
            self._look(at, gates, self._recheck[at])

    def _schedule(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of each token to act on: its directions and their strengths `[tokens, most]`, and whether
        any is due `[tokens, 1]`."""
        rows, step = self._owners, self._steps[:, None]
        start = self._start[rows] if self._started is None else self._started
        age = step - start
        due = self._carried[rows] & self._acts[rows] & (start >= 0) & (age < self.bank.lengths)
        guard = due.to(torch.uint8).topk(self._width, dim=1).indices
        live = due.gather(1, guard)
        direction = guard * self.bank.steps + age.gather(1, guard).where(live, 0)
        strength = self._strength[rows].gather(1, guard).where(live, 0.0)
        return direction, strength, live.any(1, keepdim=True)

    # -- going back -------------------------------------------------------------------------------

    def taken(self, row: int, step: int) -> None:
        """The last token of `row` that was taken is that of `step`: drafts behind it were not."""
        if self._reached[row] > step:
            self._rewind(row, step + 1)

    def read_at(self, rows: Sequence[int], steps: Sequence[int]) -> list[list[Reading]]:
        """As `read`, what the guards of each row had seen by the end of a step of its last
        forward, behind which there are more."""
        row, at = self._carried_by(rows)
        if not len(row):
            return [[] for _ in rows]
        back: list[tuple[Tensor, ...]] = []
        for own, step in zip(rows, steps, strict=True):
            drafted, column = self._undo[own], torch.from_numpy(self._columns[own])
            i, (top, valid, fired, _, generated) = drafted.states[step + 1 - drafted.first]
            column = column.to(self.bank.device)
            then = generated[i].expand(len(column))
            back.append((top[i, column], valid[i, column], fired[i, column], then))
        top, valid, fired, generated = (torch.cat(parts) for parts in zip(*back, strict=True))
        return self._told(rows, row, at, top, valid, fired, generated)

    def _rewind(self, row: int, first: int) -> None:
        """Go back to before step `first`: drafts were not taken, or all is computed once more."""
        drafted = self._undo.get(row)
        if first < 1 or drafted is None or first < drafted.first:
            self.restart(row)
            return
        at, states = drafted.states[first - drafted.first]
        for state, value in zip(self._states(), states, strict=True):
            state[row] = value[at]
        self._reached[row] = first - 1

    def _states(self) -> tuple[Tensor, ...]:
        return self._top, self._valid, self._fired, self._start, self._generated


@dataclass(frozen=True)
class _Answers:
    """Generated tokens of different rows: their rows and steps, their places `at` among the tokens
    that are sensed, and among those that are acted on (-1: not)."""

    rows: NDArray[np.int64]
    steps: NDArray[np.int64]
    at: Tensor
    acted: NDArray[np.int64]


@dataclass
class _Drafted:
    """What a row was before each of the steps that its last forward has decided, from `first`."""

    first: int
    states: Sequence[tuple[int, tuple[Tensor, ...]]]


def _moved(move: Moved, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    top, valid, fired, start, generated = states
    return move(top, 0, pool=True), move(valid, True), move(fired, -1), move(start, -1), generated
