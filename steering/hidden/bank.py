"""Every loaded steering guard of one model as stacked tensors, made once at load."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
