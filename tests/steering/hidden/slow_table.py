"""What the table says, row by row and token by token, in plain Python: slow and easy to believe."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from steering.hidden.rows import Reading, RowGuard
from steering.methods.steer import SteerGuard


@dataclass
class SlowGuard:
    """One guard on one row and what it has seen."""

    guard: SteerGuard
    row: RowGuard
    seen: list[float] = field(default_factory=list)
    fired: int | None = None
    start: int | None = None
    threshold: float = 0.0
    valid: bool = True

    @property
    def score(self) -> float:
        pool = self.guard.pool
        # fewer tokens than the pool holds count as zeros, and so do those below zero
        best = sorted([*self.seen, *[0.0] * pool], reverse=True)[:pool]
        return sum(best) / pool

    @property
    def rest(self) -> int:
        """After how many of its directions a guard may start them again."""
        return len(self.guard.directions) if self.guard.rest is None else self.guard.rest

    def look(self, gates: list[float], generated: int) -> None:
        limit = self.row.threshold if generated == 0 else self.row.recheck
        if limit is None:
            return
        self.seen += gates
        if self.fired is None:
            self.threshold = limit
            if self.score > limit:
                self.fired = self.start = generated
        elif generated - self.start >= self.rest and gates[-1] > limit:
            self.start = generated

    def due(self, layer: int, generated: int) -> Tensor | None:
        """What is added after `layer` to the last token of this forward."""
        if self.start is None or not self.row.acts or layer not in self.guard.act_layers:
            return None
        age = generated - self.start
        if age >= len(self.guard.directions):
            return None
        return self.guard.directions[age, self.guard.act_layers.index(layer)] * self.row.strength

    def reading(self) -> Reading:
        return Reading(self.score, self.threshold, self.fired, self.valid)


class SlowRow:
    """One request: `forward` takes the states after each layer and returns what they become."""

    def __init__(self, bank: list[SteerGuard], carried: list[RowGuard]) -> None:
        of = {guard.name: guard for guard in bank}
        self.guards = [SlowGuard(of[each.name], each) for each in carried]
        self.generated = -1
        self.steered = False
        """Whether the last forward added anything anywhere."""

    def forward(self, states: dict[int, Tensor], real: list[bool]) -> dict[int, Tensor]:
        """`states[layer] [tokens, width]`; `real` marks the tokens that are the row's own."""
        self.generated += 1
        for each in self.guards:
            gates = [
                sum(
                    float(states[layer][token].double() @ gate.double())
                    for layer, gate in zip(each.guard.sense_layers, each.guard.gates, strict=True)
                )
                for token, own in enumerate(real)
                if own
            ]
            each.look(gates, self.generated)
        self.steered = False
        after = {}
        for layer, hidden in states.items():
            after[layer] = hidden.clone()
            for delta in (each.due(layer, self.generated) for each in self.guards):
                if delta is not None:
                    after[layer][-1] += delta
                    self.steered = True
        return after
