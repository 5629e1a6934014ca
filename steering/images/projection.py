"""The projection seam: low-rank overlays on linear and convolution layers, for the rows that carry
them.

An edit `W' = W + ΔW` of a layer is, for one row, `y = W x + s · A (B x)`: the weights stay as they
are, and other rows have other edits or none. Layers are those of the denoiser, by their path in
it, or of a text encoder, as `COMPONENT:PATH` (`text_encoder:encoder.layers.0.mlp.fc1`). Each guard
overlays any of them; layers of one guard that read the same states share one `B`.

All overlays of one network are stacked into one `OverlayBank`, which is immutable: for each layer,
the guards that overlay it. Each guard on a row of a forward is a *pair*; all pairs of a layer are
one batched product each. Its cost grows with the pairs, not with the guards that are loaded, and a
row's result does not depend on its neighbours.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.functional import pad

from steering.hidden.rows import RowGuard
from steering.images.embedding import EmbeddingGuards

SEPARATOR = ":"
"""Between a component of the pipeline and a layer's path in it."""


@dataclass(frozen=True)
class Overlay:
    """The overlay of one guard, float32: for each group of layers `reads` has `B [rank, in]`, for
    convolutions `[rank, in, height, width]`; for each layer `writes` has `A [rank, out]`; `groups`
    lists the layers of each group.

    Raises ValueError where the three do not match.
    """

    groups: Mapping[str, Sequence[str]]
    reads: Mapping[str, Tensor]
    writes: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        layers = [layer for group in self.groups.values() for layer in group]
        if sorted(layers) != sorted(self.writes) or {*self.groups} != {*self.reads}:
            raise ValueError("each layer must be in one group, and each group must have `reads`")
        for group, members in self.groups.items():
            if self.reads[group].ndim not in (2, 4):
                raise ValueError(
                    f"the `reads` of group {group} must have 2 dimensions, or 4 for conv2d"
                )
            for layer in members:
                if len(self.writes[layer]) != len(self.reads[group]):
                    raise ValueError(f"the overlay of {layer} has another rank than its group")

    def among(self, component: str) -> Overlay:
        """The part for one component, "" for the denoiser, with the layers' paths in it."""
        groups = {
            group: [path_of(layer) for layer in layers if component_of(layer) == component]
            for group, layers in self.groups.items()
        }
        groups = {group: layers for group, layers in groups.items() if layers}
        return Overlay(
            groups,
            {group: self.reads[group] for group in groups},
            {
                path_of(layer): writes
                for layer, writes in self.writes.items()
                if component_of(layer) == component
            },
        )


def component_of(layer: str) -> str:
    """The component of a layer's name, "" for the denoiser."""
    return layer.partition(SEPARATOR)[0] if SEPARATOR in layer else ""


def path_of(layer: str) -> str:
    """The path of a layer in its component."""
    return layer.rpartition(SEPARATOR)[2]


class OverlayGuards(EmbeddingGuards, Protocol):
    """All loaded guards of one method of the projection seam; `overlays[i]` is that of `names[i]`.

    The prompt decides on which rows they act, and `Refinement.scale` how strongly on each; the
    conditioning stays as it is.
    """

    overlays: Sequence[Overlay]


@dataclass(frozen=True)
class Pairs:
    """The guards on the rows of one forward: `row`, `guard` and `strength` are `[pairs]`.

    `carried [rows]` marks the rows with at least one guard.
    """

    row: Tensor
    guard: Tensor
    strength: Tensor
    carried: Tensor

    def select(self, place: Tensor) -> Pairs | None:
        """The pairs whose guards are in a set: `place [guards]` is a guard's place in the set, -1
        for none, and becomes the `guard` of the pairs. None where there is no such pair."""
        at = place[self.guard]
        chosen = (at >= 0).nonzero()[:, 0]
        if not len(chosen):
            return None
        row = self.row[chosen]
        carried = torch.zeros_like(self.carried)
        carried[row] = True
        return Pairs(row, at[chosen], self.strength[chosen], carried)


def pairs_of(strengths: Tensor) -> Pairs | None:
    """The pairs of a forward with these `strengths [rows, guards]`; None where there is no pair."""
    row, guard = strengths.nonzero(as_tuple=True)
    if not len(row):
        return None
    return Pairs(row, guard, strengths[row, guard], strengths.any(1))


@dataclass(frozen=True)
class _Layer:
    """One layer: `members` numbers the set of guards that overlay it, `group` the `B` that they
    share there with other layers; `writes [guards of the set, rank, out]`."""

    members: int
    group: int
    writes: Tensor


class OverlayBank:
    """The overlays of one network, stacked by layer. Any layers for any guard.

    Raises ValueError for two guards of one name, or overlays of one layer of different widths.
    """

    def __init__(
        self,
        overlays: Mapping[str, Overlay] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        overlays = {name: overlay for name, overlay in (overlays or {}).items() if overlay.writes}
        names = list(overlays)
        self._index = {name: column for column, name in enumerate(names)}
        group_of = [
            {layer: group for group, layers in overlay.groups.items() for layer in layers}
            for overlay in overlays.values()
        ]
        sets: dict[tuple[int, ...], int] = {}
        groups: dict[tuple[tuple[int, str], ...], int] = {}
        self._reads: list[Tensor] = []
        """Group → `[guards of its set, rank, in, ...]`."""
        self._layers: dict[str, _Layer] = {}
        layers = [layer for overlay in overlays.values() for layer in overlay.writes]
        for layer in dict.fromkeys(layers):
            members = tuple(i for i, of in enumerate(group_of) if layer in of)
            of_set = sets.setdefault(members, len(sets))
            key = tuple((i, group_of[i][layer]) for i in members)
            overlaying = [overlays[names[i]] for i in members]
            if key not in groups:
                groups[key] = len(groups)
                reads = [overlays[names[i]].reads[group] for i, group in key]
                self._reads.append(_stacked(layer, reads).to(device))
            writes = _stacked(layer, [overlay.writes[layer] for overlay in overlaying]).to(device)
            self._layers[layer] = _Layer(of_set, groups[key], writes)
        self._places = [_places(members, len(names), device) for members in sets]
        """Set → each guard's place in it, -1 for none, `[guards]`."""

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._index)

    @property
    def layers(self) -> Collection[str]:
        """All layers that guards overlay."""
        return self._layers.keys()

    def __contains__(self, name: str) -> bool:
        return name in self._index

    def __len__(self) -> int:
        return len(self._index)

    def group(self, layer: str) -> int:
        """The number of the `B` that a layer's guards read with; layers may share it."""
        return self._layers[layer].group

    def require_fit(self, layer: str, module: nn.Module) -> None:
        """Raise ValueError where the overlays of `layer` are not of this module's shape."""
        overlays = self._layers[layer]
        reads, out = self._reads[overlays.group], overlays.writes.shape[2]
        if isinstance(module, nn.Linear):
            wanted: tuple[int, ...] = (module.in_features,)
            width = module.out_features
        else:
            assert isinstance(module, nn.Conv2d)
            if module.groups != 1 or module.padding_mode != "zeros":
                raise ValueError(f"{layer} is a convolution with groups or without zero padding")
            wanted = (module.in_channels, *module.kernel_size)
            width = module.out_channels
        if tuple(reads.shape[2:]) != wanted or out != width:
            raise ValueError(f"the overlay of {layer} is of other widths than the layer")

    def strengths(
        self, rows: Sequence[Sequence[RowGuard]], device: torch.device | str = "cpu"
    ) -> Tensor:
        """`[rows, guards]`, zero where a row does not carry a guard. Raises KeyError."""
        table = [[0.0] * len(self) for _ in rows]
        for row, guards in zip(table, rows, strict=True):
            for guard in guards:
                row[self._index[guard.name]] = guard.strength
        return torch.tensor(table, device=device).view(len(rows), len(self))

    def pairs(self, strengths: Tensor) -> dict[str, Pairs]:
        """The pairs of each layer in a forward with these `strengths [rows, guards]`, without the
        layers that have none."""
        forward = pairs_of(strengths)
        if forward is None:
            return {}
        if len(self._places) == 1:
            return dict.fromkeys(self._layers, forward)
        by_set = [forward.select(place) for place in self._places]
        by_layer = {layer: by_set[at.members] for layer, at in self._layers.items()}
        return {layer: pairs for layer, pairs in by_layer.items() if pairs is not None}

    def coordinates(self, layer: str, states: Tensor, pairs: Pairs, module: nn.Module) -> Tensor:
        """`s B x` of every pair of a layer: `[pairs, places, rank]`, from `states [rows, ...]` as
        the layer takes them. Equal for layers of one `group` and the same states."""
        reads = self._reads[self._layers[layer].group][pairs.guard]
        rows = states[pairs.row].float()
        if isinstance(module, nn.Conv2d):
            read = _convolved(rows, reads, module)
        else:
            read = _product(rows.flatten(1, -2) if rows.ndim > 2 else rows[:, None], reads.mT)
        return pairs.strength[:, None, None] * read

    def added(
        self, layer: str, output: Tensor, coordinates: Tensor, pairs: Pairs, module: nn.Module
    ) -> Tensor:
        """A layer's `output [rows, ...]` with the overlays of its rows; others keep their bits."""
        change = _product(coordinates, self._layers[layer].writes[pairs.guard])
        if isinstance(module, nn.Conv2d):
            change = change.mT
        change = change.reshape(len(change), *output.shape[1:])
        total = torch.zeros_like(output, dtype=torch.float32).index_add_(0, pairs.row, change)
        edited = (output.float() + total).to(output.dtype)
        carried = pairs.carried.view(-1, *[1] * (output.ndim - 1))
        return torch.where(carried, edited, output)


def _places(members: Sequence[int], guards: int, device: torch.device | str) -> Tensor:
    place = torch.full((guards,), -1, dtype=torch.long)
    place[list(members)] = torch.arange(len(members))
    return place.to(device)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """`left [pairs, m, k]` times `right [pairs, k, n]`; the bits of a pair do not depend on others.

    For a batch of one, a CPU uses another kernel, which sums in another order: hence the copy.
    """
    if len(left) > 1:
        return torch.bmm(left, right)
    return torch.bmm(left.expand(2, -1, -1), right.expand(2, -1, -1))[:1]


def _convolved(states: Tensor, kernels: Tensor, module: nn.Conv2d) -> Tensor:
    """`[pairs, places, rank]` of `states [pairs, in, height, width]` with one kernel a pair,
    `[pairs, rank, in, height, width]`, at the places of the module's output."""
    patches = F.unfold(
        states,
        kernel_size=module.kernel_size,
        dilation=module.dilation,
        padding=module.padding,  # type: ignore[arg-type]
        stride=module.stride,
    )
    return _product(patches.mT, kernels.flatten(2).mT)


def _stacked(layer: str, parts: Sequence[Tensor]) -> Tensor:
    """`[guards, largest rank, ...]`: tensors `[rank, ...]`, padded with zeros."""
    if len({part.shape[1:] for part in parts}) > 1:
        raise ValueError(f"the overlays of {layer} are of different widths")
    most = max(len(part) for part in parts)
    filling = [(0, 0) * (part.ndim - 1) + (0, most - len(part)) for part in parts]
    return torch.stack([pad(p.float(), fill) for p, fill in zip(parts, filling, strict=True)])
