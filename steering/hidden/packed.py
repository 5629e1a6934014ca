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

from steering.hidden.bank import HiddenBank
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

    def __init__(self, bank: HiddenBank, capacity: int, places: int, most: int) -> None:
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
        """Whether it has come to the layer behind which all guards have decided."""

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

    def rebank(self, bank: HiddenBank) -> None:
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
        self._scores: Tensor | None = None
        self._due: _Due | None = None
        self._before: list[tuple[Tensor, ...]] = []

    def decides(self, rows: Sequence[int], last: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Of rows whose stretches end with the steps `last`: whether anything was decided there."""
        own = np.asarray(rows)
        found: NDArray[np.bool_] = self._guarded[own] & (
            (last == 0) | self._rechecks[own] & (last > 0)
        )
        return found

    def carry(self, scores: Tensor, layer: int) -> None:
        """Go on at `layer` with the `scores [sensed tokens, guards]` of the layers before it, which
        another worker has run; guards with all they need decide here too."""
        self._scores = scores
        for decision in self.bank.decisions:
            if decision < layer:
                self._decide(scores, decision)

    @property
    def scores(self) -> Tensor | None:
        """The scores that `carry` takes, of the forward that is over; None where nothing was
        sensed."""
        return self._scores if self.senses else None

    def sense(self, layer: int, hidden: Tensor, residual: Tensor | None = None) -> None:
        """Read `hidden [tokens, width]` after `layer`, and the `residual` that is still to be added
        to it; guards with all they need decide."""
        scores = self.bank.sense(layer, _states(hidden, residual, self._sensed))
        self._scores = scores if self._scores is None else self._scores + scores
        if layer in self.bank.decisions:
            self._decide(self._scores, layer)

    def act(self, layer: int, hidden: Tensor, residual: Tensor | None = None) -> None:
        """Make the changes that are due in `hidden [tokens, width]`, in place; `residual` as above.

        Tokens with nothing due keep their bits.
        """
        if self._due is None:
            self._due = self._schedule()
        due = self._due
        states = _states(hidden, residual, self._acted)[:, None]
        states = states.expand(-1, due.guard.shape[1], -1)
        delta = self.bank.act(layer, states, due.guard, due.age, due.strength).sum(1)
        guards = self.bank.acting[layer]
        live = due.live if guards is None else due.live & guards[due.guard]
        before = hidden[self._acted]
        changed = before + delta.to(before.dtype)
        hidden[self._acted] = torch.where(live.any(1, keepdim=True), changed, before)

    def spoil(self, rows: Sequence[int]) -> None:
        """Let what the guards of these rows have seen count as failed."""
        self._valid[[*rows]] = False

    def _decide(self, scores: Tensor, layer: int) -> None:
        """Let the guards decide that do so behind `layer`."""
        deciding = self.bank.decisions[layer]
        self.decided = layer == self.bank.last_decision
        self._due = None
        columns = self._at[self._askers].clamp(max=len(self.bank) - 1)
        # a guard that decides later writes here again, with all of its layers
        self._kept[self._places] = scores.gather(1, columns)
        if self._prompts:
            self._decide_prompts(self._prompts, deciding)
        started = self._start[self._owners]
        self._started = _of_deciding(deciding, started, self._started)
        for number, answers in enumerate(self._answers):
            rows = torch.from_numpy(answers.rows).to(scores.device)
            if len(self._answers) > 1:
                self._remember(number, rows, deciding)
            self._generated[rows] = torch.from_numpy(answers.steps).to(scores.device)
            limit, tokens = self._recheck[rows], scores[answers.at][:, None]
            self._inspect(rows, tokens, limit, deciding=deciding)
            self._reached[answers.rows] = answers.steps
            # a schedule may start again at each of several tokens here
            acts = answers.acted >= 0
            acted = torch.from_numpy(answers.acted[acts]).to(scores.device)
            started = self._start[rows[torch.from_numpy(acts).to(scores.device)]]
            self._started[acted] = _of_deciding(deciding, started, self._started[acted])
        if len(self._answers) > 1:
            self._keep_drafts()

    def _remember(self, number: int, rows: Tensor, deciding: Tensor | None) -> None:
        """Keep the state of `rows` as it was before the answers `number` of this forward."""
        states = tuple(state[rows] for state in self._states())
        if number == len(self._before):
            self._before.append(states)
            return
        # another layer of this forward has decided before: for its guards that state holds
        earlier = self._before[number]
        merged = [
            _of_deciding(deciding, now, then)
            for now, then in zip(states[:-1], earlier[:-1], strict=True)
        ]
        self._before[number] = (*merged, earlier[-1])

    def _keep_drafts(self) -> None:
        drafts: dict[int, list[tuple[int, tuple[Tensor, ...]]]] = {}
        for answers, states in zip(self._answers, self._before, strict=True):
            for place, row in enumerate(answers.rows.tolist()):
                drafts.setdefault(row, []).append((place, states))
        for row, states_of in drafts.items():
            self._undo[row] = _Drafted(int(self._reached[row]) + 1 - len(states_of), states_of)

    def _decide_prompts(
        self, prompts: Mapping[int, Tensor], deciding: Tensor | None = None
    ) -> None:
        """Decide on prompts, whose tokens are kept at these places of each row."""
        device = self._kept.device
        longest = max(len(places) for places in prompts.values())
        at = torch.zeros(len(prompts), longest, dtype=torch.long, device=device)
        real = torch.zeros_like(at, dtype=torch.bool)
        for i, places in enumerate(prompts.values()):
            at[i, longest - len(places) :] = places
            # the first token is the attention's sink: its state is huge and says nothing
            real[i, longest - max(len(places) - 1, 1) :] = True
        rows = torch.tensor([*prompts], device=device)
        self._generated[rows] = 0
        scores = self._at_places(rows, at)
        self._inspect(rows, scores, self._threshold[rows], real, deciding)
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
            self._inspect(at, gates, self._recheck[at])

    def _schedule(self) -> _Due:
        rows, step = self._owners, self._steps[:, None]
        start = self._start[rows] if self._started is None else self._started
        age = step - start
        due = self._carried[rows] & self._acts[rows] & (start >= 0) & (age < self.bank.lengths)
        guard = due.to(torch.uint8).topk(self._width, dim=1).indices
        live = due.gather(1, guard)
        return _Due(
            guard=guard,
            age=age.gather(1, guard).where(live, 0),
            strength=self._strength[rows].gather(1, guard).where(live, 0.0),
            live=live,
        )

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
class _Due:
    """Of each token to act on, its guards with their ages and strengths, `[tokens, most]`; where
    one is not `live`, nothing is due and its strength is 0."""

    guard: Tensor
    age: Tensor
    strength: Tensor
    live: Tensor


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


def _states(hidden: Tensor, residual: Tensor | None, tokens: Tensor) -> Tensor:
    """The residual stream at these tokens, float32."""
    states = hidden[tokens].float()
    return states if residual is None else states + residual[tokens]


def _of_deciding(deciding: Tensor | None, fresh: Tensor, earlier: Tensor | None) -> Tensor:
    """`fresh [n, guards, ...]` for the guards that decide now, `earlier` for the others."""
    if deciding is None or earlier is None:
        return fresh
    mask = deciding.view(-1, *[1] * (fresh.ndim - 2))
    return torch.where(mask, fresh, earlier)
