"""The guards of all rows of a batch, stacked: what the hidden seam reads.

`Bank` holds every loaded guard of one model as stacked tensors, made once at load. `Table` holds
what each row of the running batch carries (thresholds, strengths) and what has happened to it so
far (gate values, where it fired). Rows are added, moved and removed as a scheduler does; one
forward pass is `begin`, then `sense` and `act` layer by layer. Every operation is over all rows
and all guards at once.

The statistic that is compared with the threshold is the mean of the guard's `pool` largest token
gates so far: over the prompt's tokens at prefill, and, where the row rechecks, over the generated
ones too. It only grows, costs one small product a token, and does not depend on where in the
prompt the topic stands (a small model's last prompt token alone knows too little of it).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor


@dataclass(frozen=True)
class SteerGuard:
    """The tensors of one steering guard, float32.

    A token's gate is `Σ_l gates[l] · h_l` over the decoder layers `sense_layers`, `gates` being
    `[sense layers, width]`. `directions [steps, act layers, width]` are added after `act_layers`:
    the first at the token where the guard fires, the next ones at the tokens that follow, nothing
    after the last. Where the row rechecks, a topical token starts them again once `rest` of them
    have been added (None: all).
    """

    name: str
    sense_layers: tuple[int, ...]
    gates: Tensor
    act_layers: tuple[int, ...]
    directions: Tensor
    pool: int = 1
    rest: int | None = None

    def __post_init__(self) -> None:
        problem = self._problem()
        if problem:
            raise ValueError(f"guard {self.name}: {problem}")

    def _problem(self) -> str | None:
        for layers in (self.sense_layers, self.act_layers):
            if not layers or len(set(layers)) != len(layers):
                return "it needs layers to sense and to act on, each once"
        if self.gates.ndim != 2 or len(self.gates) != len(self.sense_layers):
            return "gates must be [sense layers, width]"
        shape = (len(self.act_layers), self.width)
        if self.directions.ndim != 3 or tuple(self.directions.shape[1:]) != shape:
            return "directions must be [steps, act layers, width]"
        if not len(self.directions):
            return "directions must have at least one step"
        if min(self.act_layers) < max(self.sense_layers):
            return "it would act before it has sensed"
        if self.rest is not None and self.rest < 1:
            return "rest must be at least 1"
        if self.pool < 1:
            return "pool must be at least 1"
        return None

    @property
    def width(self) -> int:
        return self.gates.shape[-1]


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


class Bank:
    """All guards of one model, stacked by layer. Immutable; swap the whole bank to change it."""

    def __init__(self, guards: Sequence[SteerGuard], device: torch.device | str = "cpu") -> None:
        self.index = {guard.name: i for i, guard in enumerate(guards)}
        if len(self.index) != len(guards):
            raise ValueError("two guards of a bank have the same name")
        if len({guard.width for guard in guards}) > 1:
            raise ValueError("the guards of a bank must be of one width, that of the model")
        self.device = torch.device(device)
        self.steps = max((len(guard.directions) for guard in guards), default=0)
        self.pool = max((guard.pool for guard in guards), default=1)
        weights = torch.zeros(len(guards), self.pool)
        for i, guard in enumerate(guards):
            weights[i, : guard.pool] = 1.0 / guard.pool
        self.pool_weights = weights.to(self.device)
        lengths = [len(guard.directions) for guard in guards]
        self.lengths = torch.tensor(lengths, dtype=torch.long, device=self.device)
        rests = [len(guard.directions) if guard.rest is None else guard.rest for guard in guards]
        self.rests = torch.tensor(rests, dtype=torch.long, device=self.device)
        self.gates: dict[int, Tensor] = {}
        """Layer → `[guards, width]`; guards that do not sense there have zeros."""
        self.directions: dict[int, Tensor] = {}
        """Layer → `[guards * steps, width]`; zeros where a guard does not act."""
        self.last_sense = max((max(guard.sense_layers) for guard in guards), default=-1)
        for layer in sorted({layer for guard in guards for layer in guard.sense_layers}):
            self.gates[layer] = self._stack(guards, layer, sensing=True)
        for layer in sorted({layer for guard in guards for layer in guard.act_layers}):
            self.directions[layer] = self._stack(guards, layer, sensing=False).flatten(0, 1)
        early = [guard.name for guard in guards if min(guard.act_layers) < self.last_sense]
        if early:
            raise ValueError(
                f"guards {', '.join(early)} act before layer {self.last_sense}, where the last "
                "guard of this model senses: one decision is taken for all"
            )

    def _stack(self, guards: Sequence[SteerGuard], layer: int, *, sensing: bool) -> Tensor:
        width = guards[0].gates.shape[-1]
        shape = (len(guards), width) if sensing else (len(guards), self.steps, width)
        stacked = torch.zeros(shape)
        for i, guard in enumerate(guards):
            if sensing and layer in guard.sense_layers:
                stacked[i] = guard.gates[guard.sense_layers.index(layer)]
            if not sensing and layer in guard.act_layers:
                own = guard.directions[:, guard.act_layers.index(layer)]
                stacked[i, : len(own)] = own
        return stacked.to(self.device)

    def __len__(self) -> int:
        return len(self.index)

    @property
    def layers(self) -> list[int]:
        """Decoder layers that need a hook."""
        return sorted(self.gates.keys() | self.directions.keys())


def without_sink(real: Tensor) -> Tensor:
    """The tokens to sense, of a prompt's `real [rows, tokens]`: all but each row's first.

    That one is the attention sink: its state is huge and says nothing. A lone token is kept.
    """
    first = real.long().cumsum(1) == 1
    lone = real.sum(1, keepdim=True) == 1
    return real & (~first | lone)


class Table:
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
        self._guarded = [False] * capacity
        self._rechecks = [False] * capacity
        self._steering = [False] * capacity
        self.senses = self.acts = False
        """Whether the forward under way has any row to sense, any row to act on."""

    # -- rows, as a scheduler moves them --------------------------------------------------------

    def add(self, row: int, guards: Sequence[RowGuard]) -> None:
        """Put a fresh request on `row`. Raises KeyError for a guard that is not in the bank."""
        at = torch.tensor([self.bank.index[guard.name] for guard in guards], dtype=torch.long)
        at = at.to(self.bank.device)
        self.remove(row)
        self._top[row] = 0.0
        self._valid[row] = True
        self._fired[row] = self._start[row] = -1
        self._generated[row] = 0

        def put(state: Tensor, values: list[float] | list[bool]) -> None:
            state[row, at] = torch.tensor(values, dtype=state.dtype, device=state.device)

        put(self._carried, [True] * len(guards))
        put(self._acts, [guard.acts for guard in guards])
        put(self._threshold, [guard.threshold for guard in guards])
        put(self._strength, [guard.strength for guard in guards])
        put(self._recheck, [inf if g.recheck is None else g.recheck for g in guards])
        self._guarded[row] = bool(guards)
        self._rechecks[row] = any(guard.recheck is not None for guard in guards)

    def move(self, source: int, target: int) -> None:
        """Let the request on row `source` live on row `target` from now on."""
        for state in (
            *(self._carried, self._acts, self._threshold, self._recheck, self._strength),
            *(self._top, self._valid, self._fired, self._start, self._generated),
        ):
            state[target] = state[source]
        for mirror in (self._guarded, self._rechecks, self._steering):
            mirror[target] = mirror[source]
        self.remove(source)

    def remove(self, row: int) -> None:
        """Forget the request on `row`."""
        self._carried[row] = False
        self._guarded[row] = self._rechecks[row] = self._steering[row] = False

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

    def flags(self, rows: slice) -> tuple[list[bool], list[bool]]:
        """For each row: has a guard fired so far, has one met NaN. Cheap where none is carried."""
        count = rows.stop - rows.start
        if not any(self._guarded[rows]):
            return [False] * count, [False] * count
        fired = (self._carried[rows] & (self._fired[rows] >= 0)).any(1)
        invalid = (self._carried[rows] & ~self._valid[rows]).any(1)
        return fired.tolist(), invalid.tolist()

    # -- one forward pass -------------------------------------------------------------------------

    def begin(self, rows: slice, mask: Tensor | None) -> None:
        """Start a forward over `rows`.

        `mask [rows, tokens]` marks the prompt's real tokens at prefill; None means that each row
        processes the token it has just generated.
        """
        self._rows, self._mask = rows, mask
        self._prompt = mask is not None
        watched = self._guarded if self._prompt else self._rechecks
        self.senses = any(watched[rows])
        self.acts = any(self._steering[rows])
        self._gates: Tensor | None = None
        if not self._prompt:
            self._generated[rows] += 1
        if self.acts and not self.senses:
            self._schedule()

    def sense(self, layer: int, hidden: Tensor) -> None:
        """Read `hidden [rows, tokens, width]` after `layer`; at the last sensing layer, decide."""
        gates = hidden.float() @ self.bank.gates[layer].T
        self._gates = gates if self._gates is None else self._gates + gates
        if layer == self.bank.last_sense:
            self._decide(self._gates)

    def act(self, layer: int, hidden: Tensor) -> Tensor:
        """Add the due directions at the last token of `hidden [rows, tokens, width]`.

        Rows with nothing due come back bit-identical.
        """
        delta = torch.zeros(hidden.shape[0], hidden.shape[2], device=hidden.device)
        due = self.bank.directions[layer][self._due_direction] * self._due_strength
        delta.index_add_(0, self._due_row, due)
        steered = hidden.clone()
        last = hidden[:, -1]
        steered[:, -1] = torch.where(self._acting, last + delta.to(last.dtype), last)
        return steered

    def check(self, rows: slice, logits: Tensor) -> None:
        """After a forward: a guarded row whose `logits [rows, vocabulary]` hold NaN is invalid.

        A guard that decides on the prompt alone would not notice that its own push, or the model,
        has overflowed since.
        """
        if any(self._guarded[rows]):
            spoilt = logits.amax(-1, keepdim=True).isnan()
            self._valid[rows] &= ~(spoilt & self._carried[rows])

    def _pooled(self, top: Tensor) -> Tensor:
        return (top * self.bank.pool_weights).sum(-1)

    def _decide(self, gates: Tensor) -> None:
        rows = self._rows
        invalid = ~gates.isfinite()
        if self._mask is not None:
            outside = ~self._mask[..., None]
            invalid = invalid & ~outside
            gates = gates.masked_fill(outside, -torch.inf)
        seen = torch.cat([self._top[rows], gates.transpose(1, 2)], dim=-1)
        top = seen.topk(self.bank.pool, dim=-1).values
        score = self._pooled(top)
        carried, generated = self._carried[rows], self._generated[rows, None]
        limit = self._threshold[rows] if self._prompt else self._recheck[rows]
        looks = carried & (limit < torch.inf)
        first = looks & (score > limit) & (self._fired[rows] < 0)
        # a topic that turns up again in the answer starts the directions again
        rested = generated - self._start[rows] >= self.bank.rests
        again = looks & (self._fired[rows] >= 0) & rested & (gates[:, -1] > limit)
        self._top[rows] = torch.where(looks[..., None], top, self._top[rows])
        self._valid[rows] &= ~(invalid.any(1) & looks)
        self._fired[rows] = torch.where(first, generated, self._fired[rows])
        self._start[rows] = torch.where(first | again, generated, self._start[rows])
        self._schedule()

    def _schedule(self) -> None:
        """Find the (row, direction) pairs that are due in this forward."""
        rows = self._rows
        age = self._generated[rows, None] - self._start[rows]
        live = self._carried[rows] & self._acts[rows] & (self._start[rows] >= 0)
        due = live & (age < self.bank.lengths)
        self._acting = due.any(1, keepdim=True)
        self._due_row, guard = due.nonzero(as_tuple=True)
        self._due_direction = guard * self.bank.steps + age[self._due_row, guard]
        self._due_strength = self._strength[rows][self._due_row, guard][:, None]
        self._steering[rows] = self._acting[:, 0].tolist()
        self.acts = any(self._steering[rows])
