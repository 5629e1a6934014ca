"""What a steering guard does once it fires: directions that are added, token by token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from steering.hidden.bank import NoRoom, Room
from steering.methods.by_layer import copy_by_layer, stacked_by_layer
from steering.methods.fitted import FittedGuard


class Scheduled(Protocol):
    """A guard with `directions [steps, act layers, width]`, the first of them for the token where
    it fires."""

    @property
    def act_layers(self) -> Sequence[int]: ...

    @property
    def directions(self) -> Tensor: ...


def scheduled_directions(guard: FittedGuard) -> Tensor:
    """`[steps, act layers, width]` of an artifact: each share of its setting `schedule` times the
    tensor `directions [act layers, width]`. Raises ValueError naming a fault."""
    schedule = torch.tensor(guard.numbers("schedule"))
    if len(schedule) and not schedule.any():
        raise ValueError(f"guard {guard.name}: its schedule has no share of the directions")
    return schedule[:, None, None] * guard.array("directions", 2)[None]


class Schedules:
    """The directions of stacked guards: layer → `[guards * steps, width]`, zeros where a guard does
    not act."""

    def __init__(self, guards: Sequence[Scheduled], device: torch.device | str) -> None:
        steps = max(len(guard.directions) for guard in guards)
        stacked = stacked_by_layer(
            [(guard.act_layers, guard.directions.movedim(1, 0)) for guard in guards], device
        )
        rows = {layer: directions.flatten(0, 1) for layer, directions in stacked.items()}
        self._set(rows, len(guards), steps)

    def _set(self, rows: Mapping[int, Tensor], guards: int, steps: int) -> None:
        self._rows, self._guards, self._steps = rows, guards, steps

    def act(
        self, layer: int, states: Tensor, guard: Tensor, age: Tensor, strength: Tensor
    ) -> Tensor:
        """The due directions, scaled; see `HiddenGuards.act`."""
        if layer not in self._rows:
            return torch.zeros_like(states)
        return self._rows[layer][guard * self._steps + age] * strength[..., None]

    def with_room(self, room: Room) -> Schedules:
        """The same directions, as the first of a stack with this room. Raises NoRoom."""
        for needed, there, what in (
            (self._guards, room.guards, "guards"),
            (self._steps, room.steps, "steps of a schedule"),
        ):
            if needed > there:
                raise NoRoom(f"{needed} {what} where there is room for {there}")
        more = (0, 0, 0, room.steps - self._steps, 0, room.guards - self._guards)
        roomy = Schedules.__new__(Schedules)
        rows = {
            layer: pad(rows.view(self._guards, self._steps, -1), more).flatten(0, 1)
            for layer, rows in self._rows.items()
        }
        roomy._set(rows, room.guards, room.steps)
        return roomy

    def tensors(self) -> list[Tensor]:
        """All tensors of the stack."""
        return [*self._rows.values()]

    def take(self, other: Schedules) -> None:
        """Copy the directions of `other`, a stack with the same room, over these."""
        copy_by_layer(self._rows, other._rows)
