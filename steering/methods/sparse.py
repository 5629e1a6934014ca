"""Sparse features out of the residual stream of a language model, gated.

`h' = h - s Σ_i f_i(h) d_i` after each acting layer, over the features of a sparse autoencoder of
that layer that tell a subject from everything else (`sparse_features.py`), at the last token of the
prompt and at all that are generated, of requests on which the guard fires. At a strength `s` over 1
features are turned round, as the negative values of Farrell et al. (arXiv 2410.19278) are: there
they are constants and act on every token of every request.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from steering.hidden.bank import NoRoom, Placement, Room
from steering.methods.by_layer import copy_by_layer, stacked_by_layer
from steering.methods.fitted import FittedGuard, faults_of
from steering.methods.sparse_features import SparseFeatures, contributions
from steering.methods.token_gates import GatedStack, require_gates


@dataclass(frozen=True)
class SparseGuard:
    """The tensors of one guard, float32: `gates [sense layers, width]`, the mean of whose `pool`
    largest token scores decides, and `features`, whose leading dimension is that of the acting
    layers.

    Raises ValueError for tensors of other shapes.
    """

    name: str
    sense_layers: tuple[int, ...]
    gates: Tensor
    act_layers: tuple[int, ...]
    features: SparseFeatures
    pool: int = 1

    def __post_init__(self) -> None:
        require_gates(self)
        shape, width = self.features.reads.shape, self.gates.shape[-1]
        if len(shape) != 3 or shape[0] != len(self.act_layers):
            raise ValueError(f"guard {self.name}: reads must be [act layers, features, width]")
        if shape[2] != width:
            raise ValueError(
                f"guard {self.name}: its features are {shape[2]} wide, where the gates' width is "
                f"{width}"
            )

    @property
    def placement(self) -> Placement:
        """Raises ValueError for an impossible placement."""
        with faults_of(self.name):
            return Placement(self.sense_layers, self.act_layers, None, self.pool)


class SparseGuards(GatedStack):
    """All guards of sparse features of one model, stacked: `RoomyGuards`.

    Raises ValueError for an impossible placement, or guards of different widths.
    """

    def __init__(self, guards: Sequence[SparseGuard], device: torch.device | str = "cpu") -> None:
        super().__init__(guards, device)
        self._most = max(guard.features.reads.shape[1] for guard in guards)
        self._parts: tuple[Mapping[int, Tensor], ...] = tuple(
            _by_layer(guards, part, device) for part in range(4)
        )
        """Reads, offsets, cuts and writes: layer → `[guards, features, width]`, or without the
        width; zeros where a guard does not act, or has fewer."""

    def act(
        self, layer: int, states: Tensor, guard: Tensor, age: Tensor, strength: Tensor
    ) -> Tensor:
        """What is taken out, negative; see `HiddenGuards.act`."""
        if layer not in self._parts[0]:
            return torch.zeros_like(states)
        features = [part[layer][guard] for part in self._parts]
        present = contributions(features, states[..., None, :])[..., 0, :]
        return -strength[..., None] * present

    def with_room(self, room: Room) -> SparseGuards:
        """See `RoomyGuards.with_room`."""
        more = room.guards - len(self.names)
        roomy = copy(self)
        roomy._gates = self._gates.with_room(room)
        roomy._parts = tuple(
            {layer: pad(t, (0, 0) * (t.ndim - 1) + (0, more)) for layer, t in part.items()}
            for part in self._parts
        )
        return roomy

    def tensors(self) -> list[Tensor]:
        """See `RoomyGuards.tensors`."""
        return [*self._gates.tensors(), *(t for part in self._parts for t in part.values())]

    def require_room(self, other: SparseGuards) -> None:
        """See `RoomyGuards.require_room`: there is none for another number of features."""
        if other._most != self._most:
            raise NoRoom(
                f"guards of {other._most} features have no place where there were some of "
                f"{self._most} at the start"
            )

    def take(self, other: SparseGuards) -> None:
        """See `RoomyGuards.take`."""
        self._gates.take(other._gates)
        for mine, theirs in zip(self._parts, other._parts, strict=True):
            copy_by_layer(mine, theirs)
        self.names, self.placements = other.names, other.placements


def stack(guards: Sequence[FittedGuard], device: torch.device | str = "cpu") -> SparseGuards:
    """From artifacts, as `guard fit sparse` writes them. Raises ValueError naming a fault.

    Tensors: `gates [sense layers, width]`, `reads` and `writes [act layers, features, width]`,
    `offsets` and `cuts [act layers, features]`.
    """
    return SparseGuards([_loaded(guard) for guard in guards], device)


def _loaded(guard: FittedGuard) -> SparseGuard:
    with faults_of(guard.name):
        features = SparseFeatures.of(guard)
    return SparseGuard(
        name=guard.name,
        sense_layers=guard.layers("sense_layers"),
        gates=guard.array("gates", 2),
        act_layers=guard.layers("act_layers"),
        features=features,
        pool=int(guard.number("pool")),
    )


def _by_layer(
    guards: Sequence[SparseGuard], part: int, device: torch.device | str
) -> dict[int, Tensor]:
    tensors = [(guard.act_layers, guard.features.parts[part]) for guard in guards]
    if tensors[0][1].ndim == 3:
        return stacked_by_layer(tensors, device)
    # a column of its own, since the last dimension is that of the model
    columns = stacked_by_layer([(layers, t[..., None]) for layers, t in tensors], device)
    return {layer: column[..., 0] for layer, column in columns.items()}
