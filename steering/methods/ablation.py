"""Directional ablation (Arditi et al., arXiv 2406.11717), gated: directions out of the stream.

`h' = h - s Σ_i (v_i · h) v_i` after each acting layer, at the last token of the prompt and at all
that are generated, of requests on which the guard fires. Published with one direction, on all
tokens of all requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from steering.hidden.bank import Placement, Room
from steering.methods.act_subspaces import Subspaces, require_directions
from steering.methods.fitted import FittedGuard, faults_of
from steering.methods.token_gates import GatedStack, require_gates


@dataclass(frozen=True)
class AblationGuard:
    """The tensors of one guard, float32: `gates [sense layers, width]`, the mean of whose `pool`
    largest token scores decides, and orthonormal `directions [act layers, rank, width]`.

    Raises ValueError for tensors of other shapes.
    """

    name: str
    sense_layers: tuple[int, ...]
    gates: Tensor
    act_layers: tuple[int, ...]
    directions: Tensor
    pool: int = 1

    def __post_init__(self) -> None:
        require_gates(self)
        require_directions(self, self.gates.shape[-1])

    @property
    def placement(self) -> Placement:
        """Raises ValueError for an impossible placement."""
        with faults_of(self.name):
            return Placement(self.sense_layers, self.act_layers, None, self.pool)


class AblationGuards(GatedStack):
    """All ablation guards of one model, stacked: `RoomyGuards`.

    Raises ValueError for an impossible placement, or guards of different widths.
    """

    def __init__(self, guards: Sequence[AblationGuard], device: torch.device | str = "cpu") -> None:
        super().__init__(guards, device)
        self._subspaces = Subspaces(guards, device)

    def act(
        self, layer: int, states: Tensor, guard: Tensor, age: Tensor, strength: Tensor
    ) -> Tensor:
        """What is taken out, negative; see `HiddenGuards.act`."""
        if layer not in self._subspaces.layers:
            return torch.zeros_like(states)
        along = self._subspaces.coordinates(layer, states, guard)
        return self._subspaces.spanned(layer, -strength[..., None] * along, guard)

    def with_room(self, room: Room) -> AblationGuards:
        """See `RoomyGuards.with_room`."""
        roomy = copy(self)
        roomy._gates = self._gates.with_room(room)
        roomy._subspaces = self._subspaces.with_room(room)
        return roomy

    def tensors(self) -> list[Tensor]:
        """See `RoomyGuards.tensors`."""
        return [*self._gates.tensors(), *self._subspaces.tensors()]

    def require_room(self, other: AblationGuards) -> None:
        """See `RoomyGuards.require_room`: there is none for another rank."""
        self._subspaces.require_room(other._subspaces)

    def take(self, other: AblationGuards) -> None:
        """See `RoomyGuards.take`."""
        self._gates.take(other._gates)
        self._subspaces.take(other._subspaces)
        self.names, self.placements = other.names, other.placements


def stack(guards: Sequence[FittedGuard], device: torch.device | str = "cpu") -> AblationGuards:
    """From artifacts, as `guard fit ablation` writes them. Raises ValueError naming a fault.

    Tensors: `gates [sense layers, width]` and `directions [act layers, rank, width]`.
    """
    return AblationGuards([loaded(guard) for guard in guards], device)


def loaded(guard: FittedGuard) -> AblationGuard:
    """The guard of one artifact. Raises ValueError naming a fault."""
    return AblationGuard(
        name=guard.name,
        sense_layers=guard.layers("sense_layers"),
        gates=guard.array("gates", 2),
        act_layers=guard.layers("act_layers"),
        directions=guard.array("directions", 3),
        pool=int(guard.number("pool")),
    )
