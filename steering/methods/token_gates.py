"""Linear scores of tokens at decoder layers: the gate of guards of the hidden seam, stacked."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from steering.hidden.bank import NoRoom, Placement, Room
from steering.methods.by_layer import copy_by_layer, stacked_by_layer


class Gated(Protocol):
    """A guard with `gates [sense layers, width]`: a token scores `Σ_l gates[l] · h_l`."""

    @property
    def name(self) -> str: ...

    @property
    def sense_layers(self) -> Sequence[int]: ...

    @property
    def gates(self) -> Tensor: ...

    @property
    def placement(self) -> Placement: ...


def require_gates(guard: Gated) -> None:
    """Raise ValueError for gates of another shape."""
    if guard.gates.ndim != 2 or len(guard.gates) != len(guard.sense_layers):
        raise ValueError(f"guard {guard.name}: gates must be [sense layers, width]")


class TokenGates:
    """The gates of stacked guards: layer → `[guards, width]`, zeros where a guard does not sense.

    Raises ValueError for guards of different widths.
    """

    def __init__(self, guards: Sequence[Gated], device: torch.device | str) -> None:
        self._gates = stacked_by_layer([(g.sense_layers, g.gates) for g in guards], device)
        self.width = guards[0].gates.shape[-1]
        self._columns = len(guards)

    def sense(self, layer: int, states: Tensor, columns: Tensor | None = None) -> Tensor:
        """See `HiddenGuards.sense`."""
        if layer not in self._gates:
            count = self._columns if columns is None else len(columns)
            return states.new_zeros(*states.shape[:-1], count)
        gates = self._gates[layer]
        return states @ (gates if columns is None else gates[columns]).T

    def with_room(self, room: Room) -> TokenGates:
        """The same gates, as the first of a stack with this room. Raises NoRoom."""
        if self._columns > room.guards:
            raise NoRoom(f"{self._columns} guards where there is room for {room.guards}")
        roomy = copy(self)
        roomy._columns = room.guards
        roomy._gates = {
            layer: pad(gates, (0, 0, 0, room.guards - self._columns))
            for layer, gates in self._gates.items()
        }
        return roomy

    def tensors(self) -> list[Tensor]:
        """All tensors of the stack."""
        return [*self._gates.values()]

    def take(self, other: TokenGates) -> None:
        """Copy the gates of `other`, a stack with the same room, over these."""
        copy_by_layer(self._gates, other._gates)


class GatedStack:
    """What stacks of such guards have in common, whatever these do where they fire.

    Raises ValueError for an impossible placement, or guards of different widths.
    """

    def __init__(self, guards: Sequence[Gated], device: torch.device | str = "cpu") -> None:
        self.names: Sequence[str] = tuple(guard.name for guard in guards)
        self.placements: Sequence[Placement] = tuple(guard.placement for guard in guards)
        self._gates = TokenGates(guards, device)
        self.width = self._gates.width

    def sense(self, layer: int, states: Tensor, columns: Tensor | None = None) -> Tensor:
        """See `HiddenGuards.sense`."""
        return self._gates.sense(layer, states, columns)
