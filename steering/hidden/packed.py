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

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steering.hidden.bank import HiddenBank, bounded
from steering.hidden.packed_forward import (
    DueGuards,
    EndedPrompts,
    ForwardTokens,
    PackedForward,
    RowState,
    Snapshots,
    merged,
    residual_stream,
)
from steering.hidden.rows import GuardedRows, Reading, RowGuard, Rows, readings_of
from steering.hidden.slots import on_device


class PackedTable(GuardedRows):
    """Rows of a packed batch: `places` is the number of tokens in the cache of keys, `most` the
    largest number of guards on a row."""

    def __init__(self, bank: HiddenBank, capacity: int, places: int, most: int) -> None:
        super().__init__(bank, capacity, most)
        self._gates = torch.full((places, most), torch.nan, device=bank.device)
        """The gates of guarded tokens by place in the cache, for the guards of the row, by slot:
        requests that share a place carry the same guards. NaN where nothing was sensed, so that a
        decision without these gates counts as failed."""
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
        """As `GuardedRows.add`."""
        super().add(row, guards)
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
        self._reached[row] = -1
        self._snapshots.pop(row, None)

    def widen(self, most: int) -> None:
        """Make room for `most` guards on a row, where there is less."""
        super().widen(most)
        if (missing := self._slots.most - self._gates.shape[1]) > 0:
            wider = self._gates.new_full((len(self._gates), missing), torch.nan)
            self._gates = torch.cat([self._gates, wider], 1)
            self._widen_snapshots()

    def rebank(self, bank: HiddenBank) -> None:
        """As `GuardedRows.rebank`."""
        super().rebank(bank)
        self._widen_snapshots()

    def _widen_snapshots(self) -> None:
        shape = self._slots.top.shape[1:]
        for snapshots in self._snapshots.values():
            snapshots.states = [(i, state.widened(*shape)) for i, state in snapshots.states]

    def clear(self) -> None:
        """Forget all requests, and all that was kept beside the cache of keys."""
        self._gates.fill_(torch.nan)
        self._snapshots.clear()
        for row in range(len(self._reached)):
            self.remove(row)
            self._slots.put(row, ())
            self.restart(row)

    def copy(self, source: Rows, target: Rows) -> None:
        """Copy the kept gates along with a copy of places of the cache."""
        self._gates[target] = self._gates[source]

    # -- one forward pass -------------------------------------------------------------------------

    def begin(self, forward: PackedForward) -> None:
        """Start a forward. Where the table neither `senses` nor `acts`, nothing else need be
        called."""
        rows, first = np.asarray(forward.rows), np.asarray(forward.first)
        self._catch_up(forward, rows, first)
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
        self._activate(rows)
        self._starts: Tensor | None = None
        self._scores: Tensor | None = None
        self._due: DueGuards | None = None
        self._states_before: list[RowState] = []

    def _catch_up(
        self, forward: PackedForward, rows: NDArray[np.int64], first: NDArray[np.int64]
    ) -> None:
        """Bring the rows of a forward to the steps before its first ones."""
        reached = self._reached[rows]
        for i in np.flatnonzero((reached >= 0) & (first <= reached)):
            self._rewind(int(rows[i]), int(first[i]))
        for i in np.flatnonzero(self._guarded[rows] & (self._reached[rows] < 0) & (first > 0)):
            self._replay(forward, int(i), int(rows[i]), int(first[i]))

    def decides(self, rows: Sequence[int], last: NDArray[np.int64]) -> NDArray[np.bool_]:
        """For rows whose stretches end with the steps `last`: whether anything was decided."""
        index = np.asarray(rows)
        decides: NDArray[np.bool_] = self._guarded[index] & (
            (last == 0) | self._rechecks[index] & (last > 0)
        )
        return decides

    def resume(self, scores: Tensor, layer: int) -> None:
        """Continue at `layer` with the `scores [sensed tokens, most]` of the earlier layers, which
        another worker has run. Guards whose last sensing layer is among them decide."""
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
        sensed = self._tokens.sensed
        states = residual_stream(hidden[sensed], None if residual is None else residual[sensed])
        scores = self._sense(layer, self._tokens.sensed_rows, states)
        self._scores = scores if self._scores is None else self._scores + scores
        if layer in self.bank.decisions:
            self._decide(self._scores, layer)

    def act(self, layer: int, hidden: Tensor, residual: Tensor | None = None) -> None:
        """Make the changes that are due in `hidden [tokens, width]`, in place; `residual` is as in
        `sense`.

        Tokens with nothing due keep their bits.
        """
        tokens = self._tokens
        if self._due is None:
            self._due = self._due_at(
                tokens.acted_rows, tokens.acted_steps, tokens.width, self._starts
            )
            # known at once only where nobody has to wait for the device
            if self._due.any.device.type == "cpu" and layer >= self.bank.last_decision:
                self.acts = bool(self._due.any.any())
        if not self.acts:
            return
        acted = tokens.acted
        before = hidden[acted]
        states = residual_stream(before, None if residual is None else residual[acted])
        hidden[acted] = self._changed(layer, before, states, self._due)

    def _changed(self, layer: int, before: Tensor, states: Tensor, due: DueGuards) -> Tensor:
        """`before [tokens, width]` with the changes that are due after `layer` in the residual
        stream `states`."""
        states = states[:, None].expand(-1, due.guard.shape[1], -1)
        changes = self.bank.act(layer, states, due.guard, due.age, due.strength)
        delta = bounded(changes.sum(1), changes.norm(dim=-1).amax(1))
        guards = self.bank.acting[layer]
        acting = due.any if guards is None else _any(due.live & guards[due.guard])
        return torch.where(acting, before + delta.to(before.dtype), before)

    def invalidate(self, rows: Sequence[int]) -> None:
        """Mark the readings of these rows as failed."""
        self._slots.valid[on_device(np.asarray(rows, np.int64), self.bank.device)] = False

    def _decide(self, scores: Tensor, layer: int) -> None:
        """Let the guards decide whose last sensing layer is `layer`."""
        tokens, slots, device = self._tokens, self._slots, scores.device
        self.decided = layer == self.bank.last_decision
        self._due = None
        scores = self._counted(tokens.sensed_rows, scores, tokens.sensed_image)
        # a guard that decides at a later layer writes here again, with the scores of all layers
        self._gates[tokens.places] = scores
        if tokens.prompts is not None:
            self._decide_prompts(tokens.prompts, layer)
        starts = slots.start[tokens.acted_rows]
        self._starts = merged(self._deciding(tokens.acted_rows, layer), starts, self._starts)
        for number, generated in enumerate(tokens.generated):
            rows = on_device(generated.rows, device)
            deciding = self._deciding(rows, layer)
            if len(tokens.generated) > 1:
                self._remember(number, rows, deciding)
            self._generated[rows] = on_device(generated.steps, device)
            limit, gates = slots.recheck[rows], scores[generated.sensed][:, None]
            self._inspect(rows, gates, limit, deciding=deciding)
            self._reached[generated.rows] = generated.steps
            # a schedule may start again at each of several tokens of this forward
            acts = np.flatnonzero(generated.acted >= 0)
            acted = on_device(generated.acted[acts], device)
            acting = on_device(generated.rows[acts], device)
            deciding = self._deciding(acting, layer)
            self._starts[acted] = merged(deciding, slots.start[acting], self._starts[acted])
        if len(tokens.generated) > 1:
            self._keep_snapshots()
        elif tokens.generated:
            self._forget_snapshots(tokens.generated[0].rows)

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

    def _forget_snapshots(self, rows: NDArray[np.int64]) -> None:
        """Once another step is decided, those of an earlier forward do not hold any more."""
        for row in rows if self._snapshots else ():
            self._snapshots.pop(int(row), None)

    def _keep_snapshots(self) -> None:
        states_of: dict[int, list[tuple[int, RowState]]] = {}
        for generated, state in zip(self._tokens.generated, self._states_before, strict=True):
            for i, row in enumerate(generated.rows.tolist()):
                states_of.setdefault(row, []).append((i, state))
        for row, states in states_of.items():
            self._snapshots[row] = Snapshots(int(self._reached[row]) + 1 - len(states), states)

    def _decide_prompts(
        self, prompts: EndedPrompts, layer: int | None = None, *, fires: bool = True
    ) -> None:
        """Decide on prompts by the gates of their tokens: the guards that decide at `layer`, None
        for all. `fires` False keeps the statistics alone."""
        rows = on_device(prompts.rows, self.bank.device)
        self._generated[rows] = 0
        scores, limit = self._gates[prompts.places], self._slots.threshold[rows]
        # not where they are kept: a request that goes on behind this prompt has another last token
        scores = self._only_last(rows, scores, prompts.last)
        deciding = None if layer is None else self._deciding(rows, layer)
        self._inspect(rows, scores, limit, prompts.real, deciding, fires=fires)
        if fires:
            self._reached[prompts.rows] = 0

    def _replay(self, forward: PackedForward, stretch: int, row: int, first: int) -> None:
        """Decide once more on the tokens in the cache, up to step `first`: a prompt, and generated
        tokens after it."""
        device, at = self.bank.device, np.array([stretch])
        prompt = forward.prompts[stretch]
        prompts = EndedPrompts.of(forward, at, device)
        assert prompts is not None
        self._decide_prompts(prompts)
        if not self._rechecks[row] or first == 1:
            return
        places = forward.before(at, prompt + first - 1)
        rows = on_device(np.array([row]), device)
        for step in range(1, first):
            self._generated[row] = self._reached[row] = step
            gates = self._gates[places[:, prompt + step - 1 : prompt + step]]
            self._inspect(rows, gates, self._slots.recheck[rows])

    def _due_at(
        self, rows: Tensor, steps: Tensor, width: int, starts: Tensor | None = None
    ) -> DueGuards:
        """The guards that are due at tokens of `rows` at `steps`, at most `width` at each; `starts`
        are those of the schedules where they are not those of the slots."""
        slots = self._slots
        live, age = self._live(rows, steps[:, None], starts)
        guard, strength = slots.column[rows], slots.strength[rows]
        if width < slots.most:
            slot = live.to(torch.uint8).topk(width, dim=1).indices
            live, age, guard, strength = (
                each.gather(1, slot) for each in (live, age, guard, strength)
            )
        return DueGuards(guard, age.where(live, 0), strength.where(live, 0.0), live, _any(live))

    # -- going back -------------------------------------------------------------------------------

    def accept(self, row: int, step: int) -> None:
        """Accept the drafted tokens of `row` up to `step`; later ones were rejected."""
        if self._reached[row] > step:
            self._rewind(row, step + 1)

    def read_at(self, rows: Sequence[int], steps: Sequence[int]) -> list[list[Reading]]:
        """As `read`, by the end of a step of each row's last forward that has later steps too."""
        row, slot = self._row_slots(rows)
        if not len(row):
            return [[] for _ in rows]
        parts: list[tuple[Tensor, ...]] = []
        for number, step, count in zip(rows, steps, self.counts(rows), strict=True):
            snapshots = self._snapshots[number]
            i, state = snapshots.states[step + 1 - snapshots.first]
            guards = (state.top[i, :count], state.valid[i, :count], state.fired[i, :count])
            parts.append((*guards, state.generated[i].expand(count)))
        top, valid, fired, generated = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        fields = self._reading_fields(row, slot, top, valid, fired, generated)
        return readings_of(fields, self.counts(rows))

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
        slots = self._slots
        return RowState(slots.top, slots.valid, slots.fired, slots.start, self._generated)


def _any(live: Tensor) -> Tensor:
    return live.any(1, keepdim=True)
