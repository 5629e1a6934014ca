"""Guards on the rows of an engine that packs requests end to end, as vLLM does.

A forward may hold a part of a prompt, all of it, generated tokens, several drafts of them, or,
after a preemption, the whole request once more; see `packed_forward` for the *step* of a token.

The gates from which statistics are computed are kept beside the cache of keys and values, place by
place (`PackedForward.places`): a token whose keys are in the cache has its gates there too, whether
it was computed as part of a prompt or of a response, and by whichever request. A prompt is decided
on once, at step 0, however its tokens were spread over forwards. A request that comes back with a
later step (its earlier tokens are in the cache) has its decisions replayed from the kept gates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steering.hidden.bank import HiddenBank
from steering.hidden.packed_forward import (
    DueGuards,
    ForwardTokens,
    PackedForward,
    RowState,
    Snapshots,
    merged,
    residual_stream,
)
from steering.hidden.rows import BankChange, GuardedRows, Reading, RowGuard, Rows


class PackedTable(GuardedRows):
    """Rows of a packed batch: `places` is the number of tokens in the cache of keys, `most` the
    largest number of guards on a row."""

    def __init__(self, bank: HiddenBank, capacity: int, places: int, most: int) -> None:
        super().__init__(bank, capacity)
        self._gates = torch.full((places, most), torch.nan, device=bank.device)
        """The gates of guarded tokens by place in the cache, for the guards of the row in its
        order: requests that share a place carry the same guards. NaN where nothing was sensed, so
        that a decision without these gates counts as failed."""
        self._guard_columns = torch.full((capacity, most), len(bank), device=bank.device)
        """The columns of a row's guards in the bank; `len(bank)` where it has fewer guards."""
        self._acting_guards = np.zeros(capacity, np.int64)
        """The number of guards of a row that act."""
        self._reached = np.full(capacity, -1)
        """The last step that was decided."""
        self._snapshots: dict[int, Snapshots] = {}
        self.senses = self.acts = False
        """Whether the current forward has any token to sense, any to act on."""
        self.decided = False
        """Whether the forward has passed the layer after which all guards have decided."""

    def add(self, row: int, guards: Sequence[RowGuard]) -> None:
        """Put a fresh request on `row`. Raises KeyError for a guard that is not in the bank, and
        ValueError for too many."""
        most = self._guard_columns.shape[1]
        if len(guards) > most:
            raise ValueError(f"a row has room for {most} guards, not {len(guards)}")
        super().add(row, guards)
        self._set_guard_columns(row)
        self._acting_guards[row] = sum(guard.acts for guard in guards)

    def restart(self, row: int) -> None:
        """Reset the statistics and decisions of the guards of `row`."""
        super().restart(row)
        self._reached[row] = -1
        self._snapshots.pop(row, None)

    def remove(self, row: int) -> None:
        """Forget the request on `row`."""
        super().remove(row)
        self._acting_guards[row] = 0
        self._snapshots.pop(row, None)

    def widen(self, most: int) -> None:
        """Make room for `most` guards on a row, where there is less."""
        capacity, current = self._guard_columns.shape
        if most > current:
            wider = self._gates.new_full((len(self._gates), most - current), torch.nan)
            self._gates = torch.cat([self._gates, wider], 1)
            self._guard_columns = self._guard_columns.new_empty(capacity, most)
            self._set_all_guard_columns()

    def rebank(self, bank: HiddenBank) -> None:
        """Go on with another bank. Raises ValueError where it lacks a guard that a row carries."""
        change = BankChange(self.bank, bank)
        super().rebank(bank)
        self._set_all_guard_columns()
        for snapshots in self._snapshots.values():
            snapshots.states = [(i, _reordered(change, state)) for i, state in snapshots.states]

    def _set_all_guard_columns(self) -> None:
        for row in range(len(self._guard_columns)):
            self._set_guard_columns(row)

    def _set_guard_columns(self, row: int) -> None:
        columns = torch.from_numpy(self._columns[row]).to(self.bank.device)
        self._guard_columns[row] = len(self.bank)
        self._guard_columns[row, : len(columns)] = columns

    def copy(self, source: Rows, target: Rows) -> None:
        """Copy the kept gates along with a copy of places of the cache."""
        self._gates[target] = self._gates[source]

    # -- one forward pass -------------------------------------------------------------------------

    def begin(self, forward: PackedForward) -> None:
        """Start a forward. Where the table neither `senses` nor `acts`, nothing else need be
        called."""
        rows, first = np.asarray(forward.rows), np.asarray(forward.first)
        reached = self._reached[rows]
        for i in np.flatnonzero((reached >= 0) & (first <= reached)):
            self._rewind(int(rows[i]), int(first[i]))
        for i in np.flatnonzero(self._guarded[rows] & (self._reached[rows] < 0) & (first > 0)):
            prompt, step = forward.prompts[int(i)], int(first[i])
            self._replay(int(rows[i]), forward.before(int(i), prompt + step - 1), prompt)
        tokens = ForwardTokens.of(
            forward,
            guarded=self._guarded,
            rechecks=self._rechecks,
            acting=self._acting_guards,
            device=self.bank.device,
        )
        self.senses = tokens is not None and len(tokens.sensed) > 0
        self.acts = tokens is not None and len(tokens.acted) > 0
        self.decided = False
        if tokens is None:
            return
        self._tokens = tokens
        self._starts: Tensor | None = None
        self._scores: Tensor | None = None
        self._due: DueGuards | None = None
        self._states_before: list[RowState] = []

    def decides(self, rows: Sequence[int], last: NDArray[np.int64]) -> NDArray[np.bool_]:
        """For rows whose stretches end with the steps `last`: whether anything was decided."""
        index = np.asarray(rows)
        decides: NDArray[np.bool_] = self._guarded[index] & (
            (last == 0) | self._rechecks[index] & (last > 0)
        )
        return decides

    def resume(self, scores: Tensor, layer: int) -> None:
        """Continue at `layer` with the `scores [sensed tokens, guards]` of the earlier layers,
        which another worker has run. Guards whose last sensing layer is among them decide."""
        self._scores = scores
        for decision in self.bank.decisions:
            if decision < layer:
                self._decide(scores, decision)

    @property
    def scores(self) -> Tensor | None:
        """The scores that `resume` takes, after the forward; None where nothing was sensed."""
        return self._scores if self.senses else None

    def sense(self, layer: int, hidden: Tensor, residual: Tensor | None = None) -> None:
        """Sense `hidden [tokens, width]` after `layer`, plus the `residual` that is not yet added
        to it. Guards whose last sensing layer this is decide."""
        states = residual_stream(hidden, residual, self._tokens.sensed)
        scores = self.bank.sense(layer, states)
        self._scores = scores if self._scores is None else self._scores + scores
        if layer in self.bank.decisions:
            self._decide(self._scores, layer)

    def act(self, layer: int, hidden: Tensor, residual: Tensor | None = None) -> None:
        """Make the changes that are due in `hidden [tokens, width]`, in place; `residual` is as in
        `sense`.

        Tokens with nothing due keep their bits.
        """
        if self._due is None:
            self._due = self._schedule()
        due, acted = self._due, self._tokens.acted
        states = residual_stream(hidden, residual, acted)[:, None]
        states = states.expand(-1, due.guard.shape[1], -1)
        delta = self.bank.act(layer, states, due.guard, due.age, due.strength).sum(1)
        guards = self.bank.acting[layer]
        acting = due.any if guards is None else _any(due.live & guards[due.guard])
        before = hidden[acted]
        hidden[acted] = torch.where(acting, before + delta.to(before.dtype), before)

    def invalidate(self, rows: Sequence[int]) -> None:
        """Mark the readings of these rows as failed."""
        self._valid[[*rows]] = False

    def _decide(self, scores: Tensor, layer: int) -> None:
        """Let the guards decide whose last sensing layer is `layer`."""
        tokens, deciding = self._tokens, self.bank.decisions[layer]
        self.decided = layer == self.bank.last_decision
        self._due = None
        columns = self._guard_columns[tokens.sensed_rows].clamp(max=len(self.bank) - 1)
        # a guard that decides at a later layer writes here again, with the scores of all layers
        self._gates[tokens.places] = scores.gather(1, columns)
        if tokens.prompts:
            self._decide_prompts(tokens.prompts, deciding)
        starts = self._start[tokens.acted_rows]
        self._starts = merged(deciding, starts, self._starts)
        for number, generated in enumerate(tokens.generated):
            rows = torch.from_numpy(generated.rows).to(scores.device)
            if len(tokens.generated) > 1:
                self._remember(number, rows, deciding)
            self._generated[rows] = torch.from_numpy(generated.steps).to(scores.device)
            limit, gates = self._recheck[rows], scores[generated.sensed][:, None]
            self._inspect(rows, gates, limit, deciding=deciding)
            self._reached[generated.rows] = generated.steps
            # a schedule may start again at each of several tokens of this forward
            acts = generated.acted >= 0
            acted = torch.from_numpy(generated.acted[acts]).to(scores.device)
            starts = self._start[rows[torch.from_numpy(acts).to(scores.device)]]
            self._starts[acted] = merged(deciding, starts, self._starts[acted])
        if len(tokens.generated) > 1:
            self._keep_snapshots()

    def _remember(self, number: int, rows: Tensor, deciding: Tensor | None) -> None:
        """Keep the state of `rows` before the decision `number` of this forward."""
        state = RowState(*(values[rows] for values in self._row_state()))
        if number == len(self._states_before):
            self._states_before.append(state)
            return
        # an earlier layer of this forward has decided: the state kept then holds for its guards
        earlier = self._states_before[number]
        by_guard = zip(state[:-1], earlier[:-1], strict=True)
        parts = [merged(deciding, now, then) for now, then in by_guard]
        self._states_before[number] = RowState._make([*parts, earlier.generated])

    def _keep_snapshots(self) -> None:
        states_of: dict[int, list[tuple[int, RowState]]] = {}
        for generated, state in zip(self._tokens.generated, self._states_before, strict=True):
            for i, row in enumerate(generated.rows.tolist()):
                states_of.setdefault(row, []).append((i, state))
        for row, states in states_of.items():
            self._snapshots[row] = Snapshots(int(self._reached[row]) + 1 - len(states), states)

    def _decide_prompts(
        self, prompts: Mapping[int, Tensor], deciding: Tensor | None = None
    ) -> None:
        """Decide on the prompts of some rows, given the places of their tokens in the cache."""
        device = self._gates.device
        longest = max(len(places) for places in prompts.values())
        at = torch.zeros(len(prompts), longest, dtype=torch.long, device=device)
        real = torch.zeros_like(at, dtype=torch.bool)
        for i, places in enumerate(prompts.values()):
            at[i, longest - len(places) :] = places
            # the first token is the attention sink: its state is huge and carries no information
            real[i, longest - max(len(places) - 1, 1) :] = True
        rows = torch.tensor([*prompts], device=device)
        self._generated[rows] = 0
        scores = self._gates_at(rows, at)
        self._inspect(rows, scores, self._threshold[rows], real, deciding)
        self._reached[[*prompts]] = 0

    def _gates_at(self, rows: Tensor, places: Tensor) -> Tensor:
        """The gates `[rows, tokens, guards]` kept at `places [rows, tokens]`; -inf for a guard that
        the row does not carry."""
        kept = self._gates[places]
        gates = kept.new_full((*places.shape, len(self.bank) + 1), -torch.inf)
        gates.scatter_(2, self._guard_columns[rows][:, None].expand_as(kept), kept)
        return gates[..., :-1]

    def _replay(self, row: int, places: Tensor, prompt: int) -> None:
        """Decide once more on the tokens in the cache: a prompt, and generated tokens after it."""
        self._decide_prompts({row: places[:prompt]})
        rows = torch.tensor([row], device=self._gates.device)
        for step in range(1, len(places) - prompt + 1) if self._rechecks[row] else ():
            self._generated[row] = self._reached[row] = step
            gates = self._gates_at(rows, places[None, prompt + step - 1 : prompt + step])
            self._inspect(rows, gates, self._recheck[rows])

    def _schedule(self) -> DueGuards:
        """Find the guards that are due at each token to act on."""
        rows, step = self._tokens.acted_rows, self._tokens.acted_steps[:, None]
        start = self._start[rows] if self._starts is None else self._starts
        age = step - start
        due = self._carried[rows] & self._acts[rows] & (start >= 0) & (age < self.bank.lengths)
        guard = due.to(torch.uint8).topk(self._tokens.width, dim=1).indices
        live = due.gather(1, guard)
        return DueGuards(
            guard=guard,
            age=age.gather(1, guard).where(live, 0),
            strength=self._strength[rows].gather(1, guard).where(live, 0.0),
            live=live,
            any=_any(live),
        )

    # -- going back -------------------------------------------------------------------------------

    def accept(self, row: int, step: int) -> None:
        """Accept the drafted tokens of `row` up to `step`; later ones were rejected."""
        if self._reached[row] > step:
            self._rewind(row, step + 1)

    def read_at(self, rows: Sequence[int], steps: Sequence[int]) -> list[list[Reading]]:
        """As `read`, by the end of a step of each row's last forward that has later steps too."""
        row, column = self._row_columns(rows)
        if not len(row):
            return [[] for _ in rows]
        parts: list[tuple[Tensor, ...]] = []
        for number, step in zip(rows, steps, strict=True):
            snapshots = self._snapshots[number]
            columns = torch.from_numpy(self._columns[number]).to(self.bank.device)
            i, state = snapshots.states[step + 1 - snapshots.first]
            generated = state.generated[i].expand(len(columns))
            guards = (state.top[i, columns], state.valid[i, columns], state.fired[i, columns])
            parts.append((*guards, generated))
        top, valid, fired, generated = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        return self._readings_of(rows, row, column, top, valid, fired, generated)

    def _rewind(self, row: int, first: int) -> None:
        """Go back to before step `first`: drafts were rejected, or the request is recomputed."""
        snapshots = self._snapshots.get(row)
        if first < 1 or snapshots is None or first < snapshots.first:
            self.restart(row)
            return
        i, state = snapshots.states[first - snapshots.first]
        for values, kept in zip(self._row_state(), state, strict=True):
            values[row] = kept[i]
        self._reached[row] = first - 1

    def _row_state(self) -> RowState:
        return RowState(self._top, self._valid, self._fired, self._start, self._generated)


def _any(live: Tensor) -> Tensor:
    return live.any(1, keepdim=True)


def _reordered(change: BankChange, state: RowState) -> RowState:
    return RowState(
        top=change(state.top, 0, pool=True),
        valid=change(state.valid, True),
        fired=change(state.fired, -1),
        start=change(state.start, -1),
        generated=state.generated,
    )
