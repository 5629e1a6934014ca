"""The computation of the table, row by row and token by token, in plain Python: slow and simple."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from steering.hidden.rows import Reading, RowGuard
from steering.methods.steer import SteerGuard
from tests.steering.hidden.guards import AnyGuard


@dataclass
class SlowGuard:
    """One guard on one row, with its statistics."""

    guard: AnyGuard
    row: RowGuard
    gates: list[float] = field(default_factory=list)
    fired: int | None = None
    start: int | None = None
    threshold: float = 0.0
    valid: bool = True

    @property
    def score(self) -> float:
        pool = self.guard.pool
        # fewer tokens than the pool has room for count as zeros, and so do those below zero
        best = sorted([*self.gates, *[0.0] * pool], reverse=True)[:pool]
        return sum(best) / pool

    @property
    def steps(self) -> int:
        """The number of tokens at which the guard acts."""
        guard = self.guard
        return len(guard.directions) if isinstance(guard, SteerGuard) else guard.steps

    @property
    def rest(self) -> int:
        """The number of steps after which the guard may start again."""
        return self.steps if self.guard.rest is None else self.guard.rest

    def sense(self, gates: list[float], generated: int) -> None:
        limit = self.row.threshold if generated == 0 else self.row.recheck
        if limit is None:
            return
        self.gates += gates
        if self.fired is None:
            self.threshold = limit
            if self.score > limit:
                self.fired = self.start = generated
        elif generated - self.start >= self.rest and gates[-1] > limit:
            self.start = generated

    def change(self, layer: int, generated: int, state: Tensor) -> Tensor | None:
        """The change after `layer` to the state of the last token of this forward."""
        if self.start is None or not self.row.acts or layer not in self.guard.act_layers:
            return None
        age = generated - self.start
        if age >= self.steps:
            return None
        guard, strength = self.guard, self.row.strength
        if isinstance(guard, SteerGuard):
            return guard.directions[age, guard.act_layers.index(layer)] * strength
        return -strength * float(state @ guard.direction) * guard.direction

    def reading(self) -> Reading:
        return Reading(self.score, self.threshold, self.fired, self.valid)


class SlowRow:
    """One request: `forward` takes the states after each layer and returns the changed ones."""

    def __init__(self, bank: Sequence[AnyGuard], carried: list[RowGuard]) -> None:
        by_name = {guard.name: guard for guard in bank}
        self.guards = [SlowGuard(by_name[guard.name], guard) for guard in carried]
        self.generated = -1
        self.steered = False
        """Whether the last forward added anything anywhere."""

    def forward(self, states: dict[int, Tensor], real: list[bool]) -> dict[int, Tensor]:
        """`states[layer] [tokens, width]`; `real` marks the tokens that are not padding."""
        self.generated += 1
        for slow in self.guards:
            gates = [
                sum(
                    float(states[layer][token].double() @ gate.double())
                    for layer, gate in zip(slow.guard.sense_layers, slow.guard.gates, strict=True)
                )
                for token, is_real in enumerate(real)
                if is_real
            ]
            slow.sense(gates, self.generated)
        self.steered = False
        after = {}
        for layer, hidden in states.items():
            after[layer] = hidden.clone()
            # guards at one layer all read the state before any of their changes
            changes = [slow.change(layer, self.generated, hidden[-1]) for slow in self.guards]
            due = [change for change in changes if change is not None]
            if due:
                after[layer][-1] += joined(due)
                self.steered = True
        return after


def joined(changes: Sequence[Tensor]) -> Tensor:
    """The sum, where it is longer than each of `changes` with the length of the longest of them."""
    total = torch.stack([*changes]).sum(0)
    length, longest = float(total.norm()), max(float(change.norm()) for change in changes)
    return total * (longest / length) if length > longest else total
