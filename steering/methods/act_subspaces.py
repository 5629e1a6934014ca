"""Subspaces of the residual stream, out of which guards of the hidden seam take something."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from steering.hidden.bank import NoRoom, Room
from steering.methods.by_layer import copy_by_layer, stacked_by_layer


class Spanned(Protocol):
    """A guard with orthonormal `directions [act layers, rank, width]`."""

    @property
    def name(self) -> str: ...

    @property
    def act_layers(self) -> Sequence[int]: ...

    @property
    def directions(self) -> Tensor: ...


def require_directions(guard: Spanned, width: int) -> None:
    """Raise ValueError for directions of another shape, or ones that are not orthonormal."""
    directions = guard.directions
    if directions.ndim != 3 or len(directions) != len(guard.act_layers):
        raise ValueError(f"guard {guard.name}: directions must be [act layers, rank, width]")
    if directions.shape[2] != width or directions.shape[1] > width:
        raise ValueError(
            f"guard {guard.name}: directions are {directions.shape[1]} x {directions.shape[2]} a "
            f"layer, where the gates' width is {width}"
        )
    products = directions @ directions.mT
    if not torch.allclose(products, torch.eye(directions.shape[1]), atol=1e-3):
        raise ValueError(f"guard {guard.name}: the directions of a layer must be orthonormal")


class Subspaces:
    """The directions of stacked guards: layer → `[guards, rank, width]`, zeros where a guard does
    not act, or has fewer."""

    def __init__(self, guards: Sequence[Spanned], device: torch.device | str) -> None:
        self._guards = len(guards)
        self._rank = max(guard.directions.shape[1] for guard in guards)
        self._bases = stacked_by_layer([(g.act_layers, g.directions) for g in guards], device)

    @property
    def layers(self) -> Sequence[int]:
        """Those at which a guard acts."""
        return [*self._bases]

    def coordinates(self, layer: int, states: Tensor, guard: Tensor) -> Tensor:
        """`V h [..., rank]` of `states [..., width]`, each for its `guard [...]`."""
        return (self._bases[layer][guard] @ states[..., None])[..., 0]

    def spanned(self, layer: int, coordinates: Tensor, guard: Tensor) -> Tensor:
        """`Vᵀ c [..., width]` of `coordinates [..., rank]`."""
        return (coordinates[..., None, :] @ self._bases[layer][guard])[..., 0, :]

    def with_room(self, room: Room) -> Subspaces:
        """The same, as the first of a stack with this room. Raises NoRoom."""
        if self._guards > room.guards:
            raise NoRoom(f"{self._guards} guards where there is room for {room.guards}")
        roomy = copy(self)
        roomy._guards = room.guards
        more = (0, 0, 0, 0, 0, room.guards - self._guards)
        roomy._bases = {layer: pad(basis, more) for layer, basis in self._bases.items()}
        return roomy

    def tensors(self) -> list[Tensor]:
        """All tensors of the stack."""
        return [*self._bases.values()]

    def require_room(self, other: Subspaces) -> None:
        """Raise NoRoom where the directions of `other` are more than those of these guards."""
        if other._rank != self._rank:
            raise NoRoom(
                f"guards of rank {other._rank} have no place where there were some of rank "
                f"{self._rank} at the start"
            )

    def take(self, other: Subspaces) -> None:
        """Copy the directions of `other`, a stack with the same room, over these."""
        copy_by_layer(self._bases, other._bases)
