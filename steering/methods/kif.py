"""Activation signatures, suppressed while they are active: the capsules of KIF (arXiv 2601.10566).

After each acting layer `h' = h - g |s| Σ_i (v_i · h) v_i`, with the signature's directions `v_i`
and the gate `g = σ(κ (z - z₀))` of how far the size of `V h` exceeds what it is on other requests,
in standard deviations: `z = (|V h| - μ) / σ`. κ is 1.6 and z₀ 3, as published.

Published, a router of embeddings and keywords chooses one capsule for a request. Here the score of
the prompt does, on which the guard is silent below its threshold; sense and act are at the same
layer and of the same width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from steering.hidden.bank import Room
from steering.methods.ablation import AblationGuard, AblationGuards
from steering.methods.ablation import loaded as loaded_ablation
from steering.methods.by_layer import copy_by_layer, stacked_by_layer
from steering.methods.fitted import FittedGuard


@dataclass(frozen=True)
class KifGuard(AblationGuard):
    """As `AblationGuard`, and `levels [act layers, 2]`, μ and σ of `|V h|`; `bias` is added to the
    score of each token.

    Raises ValueError for tensors of other shapes, and a σ that is not positive.
    """

    levels: Tensor = torch.empty(0)
    bias: float = 0.0
    slope: float = 1.6
    middle: float = 3.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if tuple(self.levels.shape) != (len(self.act_layers), 2):
            raise ValueError(f"guard {self.name}: levels must be [act layers, 2]")
        if not bool((self.levels[:, 1] > 0).all()):
            raise ValueError(f"guard {self.name}: the deviations of levels must be over 0")


class KifGuards(AblationGuards):
    """All KIF guards of one model, stacked. Raises ValueError as `AblationGuards`."""

    def __init__(self, guards: Sequence[KifGuard], device: torch.device | str = "cpu") -> None:
        super().__init__(guards, device)
        # a deviation of 1 where nobody is: nothing is divided by zero
        self._levels = stacked_by_layer(
            [(guard.act_layers, guard.levels) for guard in guards], device, fill=1.0
        )
        """Layer → `[guards, 2]`."""
        self._curves = torch.tensor([[g.slope, g.middle] for g in guards], device=device)
        decides = {guard.placement.decides for guard in guards}
        self._bias = {
            layer: torch.tensor(
                [guard.bias if guard.placement.decides == layer else 0.0 for guard in guards],
                device=device,
            )
            for layer in sorted(decides)
        }
        """Layer → `[guards]`, of those that decide there."""

    def sense(self, layer: int, states: Tensor, columns: Tensor | None = None) -> Tensor:
        """See `HiddenGuards.sense`."""
        scores = super().sense(layer, states, columns)
        if layer not in self._bias:
            return scores
        bias = self._bias[layer]
        return scores + (bias if columns is None else bias[columns])

    def act(
        self, layer: int, states: Tensor, guard: Tensor, age: Tensor, strength: Tensor
    ) -> Tensor:
        """What is suppressed, negative; see `HiddenGuards.act`."""
        if layer not in self._subspaces.layers:
            return torch.zeros_like(states)
        along = self._subspaces.coordinates(layer, states, guard)
        mean, deviation = self._levels[layer][guard].unbind(-1)
        slope, middle = self._curves[guard].unbind(-1)
        z = (along.norm(dim=-1) - mean) / deviation
        scale = strength * torch.sigmoid(slope * (z - middle))
        return self._subspaces.spanned(layer, -scale[..., None] * along, guard)

    def with_room(self, room: Room) -> KifGuards:
        """See `RoomyGuards.with_room`."""
        more = room.guards - len(self.names)
        roomy = super().with_room(room)
        assert isinstance(roomy, KifGuards)
        roomy._levels = {at: pad(t, (0, 0, 0, more), value=1.0) for at, t in self._levels.items()}
        roomy._curves = pad(self._curves, (0, 0, 0, more))
        roomy._bias = {layer: pad(bias, (0, more)) for layer, bias in self._bias.items()}
        return roomy

    def tensors(self) -> list[Tensor]:
        """See `RoomyGuards.tensors`."""
        own = [*self._levels.values(), self._curves, *self._bias.values()]
        return [*super().tensors(), *own]

    def take(self, other: AblationGuards) -> None:
        """See `RoomyGuards.take`."""
        assert isinstance(other, KifGuards)
        super().take(other)
        copy_by_layer(self._levels, other._levels, fill=1.0)
        self._curves.copy_(other._curves)
        copy_by_layer(self._bias, other._bias)


def stack(guards: Sequence[FittedGuard], device: torch.device | str = "cpu") -> KifGuards:
    """From artifacts, as `guard fit kif` writes them. Raises ValueError naming a fault.

    Tensors: those of an ablation, and `levels [act layers, 2]`.
    """
    return KifGuards([loaded(guard) for guard in guards], device)


def loaded(guard: FittedGuard) -> KifGuard:
    """The guard of one artifact. Raises ValueError naming a fault."""
    return KifGuard(
        **vars(loaded_ablation(guard)),
        levels=guard.array("levels", 2),
        bias=guard.number("bias"),
        slope=guard.number("slope"),
        middle=guard.number("middle"),
    )
