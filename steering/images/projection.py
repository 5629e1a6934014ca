"""The projection seam: low-rank overlays on linear layers, for the rows that carry them.

An edit `W' = W + ΔW` of a layer is, for one row, `y = W x + s · A (Bᵀ x)`: the weights stay as they
are, and the next row has another edit or none. Layers that read the same states share one `B`.

Every loaded overlay of one model is stacked into one `OverlayBank`, which is immutable. Each guard
on a row of a forward is a *pair*; all pairs of a layer are one batched product each. Its cost grows
with the pairs, not with the guards that are loaded, and what a row gets does not depend on its
neighbours'.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from steering.hidden.rows import RowGuard
from steering.images.embedding import EmbeddingGuards


@dataclass(frozen=True)
class Overlay:
    """One guard's overlay, float32: `reads` has for each group of layers `B [rank, in]`, `writes`
    for each layer `A [rank, out]`, `groups` says which layers are of a group.

    Raises ValueError where they do not go together.
    """

    groups: Mapping[str, Sequence[str]]
    reads: Mapping[str, Tensor]
    writes: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        named = [layer for layers in self.groups.values() for layer in layers]
        if sorted(named) != sorted(self.writes) or {*self.groups} != {*self.reads}:
            raise ValueError("each layer must be of one group, and each group have its states")
        for group, layers in self.groups.items():
            for layer in layers:
                if len(self.writes[layer]) != len(self.reads[group]):
                    raise ValueError(f"the overlay of {layer} has another rank than its group")


class OverlayGuards(EmbeddingGuards, Protocol):
    """All loaded guards of one method of the projection seam; `overlays[i]` is that of `names[i]`.

    What it senses on the prompt decides which rows it acts on, but it leaves the conditioning as
    it is.
    """

    overlays: Sequence[Overlay]


@dataclass(frozen=True)
class Pairs:
    """The guards on the rows of one forward: `row`, `guard` and `strength` `[pairs]`, one a pair.

    `carried [rows]` says which rows have any.
    """

    row: Tensor
    guard: Tensor
    strength: Tensor
    carried: Tensor


class OverlayBank:
    """The overlays of one model, stacked. Raises ValueError where they are of different layers."""

    def __init__(
        self, overlays: Sequence[OverlayGuards] = (), device: torch.device | str = "cpu"
    ) -> None:
        each = [own for stack in overlays for own in stack.overlays]
        names = [name for stack in overlays for name in stack.names]
        self._index = {name: column for column, name in enumerate(names)}
        if len(self._index) != len(names):
            raise ValueError("two overlays of a model have the same name")
        groups = {group: tuple(layers) for group, layers in each[0].groups.items()} if each else {}
        for name, own in zip(names, each, strict=True):
            if {group: tuple(layers) for group, layers in own.groups.items()} != groups:
                raise ValueError(f"the overlay of {name} is on other layers than {names[0]}'s")
        self.group_of = {layer: group for group, layers in groups.items() for layer in layers}
        """Layer → the group whose states it reads."""
        self._reads = {
            group: _stacked(group, [own.reads[group] for own in each]).transpose(1, 2).to(device)
            for group in groups
        }
        """Group → `[guards, in, rank]`."""
        self._writes = {
            layer: _stacked(layer, [own.writes[layer] for own in each]).to(device)
            for layer in self.group_of
        }
        """Layer → `[guards, rank, out]`."""

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._index)

    def __contains__(self, name: str) -> bool:
        return name in self._index

    def __len__(self) -> int:
        return len(self._index)

    def widths(self, layer: str) -> tuple[int, int]:
        """How many values a layer reads and writes."""
        return self._reads[self.group_of[layer]].shape[1], self._writes[layer].shape[2]

    def strengths(
        self, rows: Sequence[Sequence[RowGuard]], device: torch.device | str = "cpu"
    ) -> Tensor:
        """`[rows, guards]`, zero where a row does not carry a guard. Raises KeyError."""
        table = [[0.0] * len(self) for _ in rows]
        for row, guards in zip(table, rows, strict=True):
            for guard in guards:
                row[self._index[guard.name]] = guard.strength
        return torch.tensor(table, device=device).view(len(rows), len(self))

    def coordinates(self, group: str, states: Tensor, pairs: Pairs) -> Tensor:
        """`s Bᵀ x` of every pair, `[pairs, tokens, rank]`, from `states [rows, tokens, in]`."""
        read = _product(states[pairs.row].float(), self._reads[group][pairs.guard])
        return pairs.strength[:, None, None] * read

    def added(self, layer: str, output: Tensor, coordinates: Tensor, pairs: Pairs) -> Tensor:
        """`output [rows, tokens, out]` with the overlays of its rows; others keep their bits."""
        more = _product(coordinates, self._writes[layer][pairs.guard])
        total = torch.zeros_like(output, dtype=torch.float32).index_add_(0, pairs.row, more)
        edited = (output.float() + total).to(output.dtype)
        return torch.where(pairs.carried[:, None, None], edited, output)


def pairs_of(strengths: Tensor) -> Pairs | None:
    """Of a forward whose rows have these, `[rows, guards]`; None where no row carries a guard."""
    row, guard = strengths.nonzero(as_tuple=True)
    if not len(row):
        return None
    return Pairs(row, guard, strengths[row, guard], strengths.any(1))


def _product(left: Tensor, right: Tensor) -> Tensor:
    """`left [pairs, m, k]` times `right [pairs, k, n]`, each pair with the bits it has in company.

    A CPU takes another kernel for a batch of one, which sums in another order.
    """
    if len(left) > 1:
        return torch.bmm(left, right)
    return torch.bmm(left.expand(2, -1, -1), right.expand(2, -1, -1))[:1]


def _stacked(of: str, parts: Sequence[Tensor]) -> Tensor:
    """`[guards, most rank, width]`: matrices `[rank, width]` filled up with zeros."""
    if len({part.shape[1] for part in parts}) > 1:
        raise ValueError(f"the overlays of {of} are of different widths")
    most = max(len(part) for part in parts)
    return torch.stack([pad(part.float(), (0, 0, 0, most - len(part))) for part in parts])
