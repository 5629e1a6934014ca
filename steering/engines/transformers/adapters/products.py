"""Low-rank overlays of linear layers, for the rows of a forward that carry them.

For one row a layer gives `y = W x + Σ s B (A x)` over the overlays that the row carries; `W` stays
as it is. The overlays of a layer are stacked, their ranks padded with zeros to the largest, and all
pairs of a row and an overlay are one batched product: S-LoRA (Sheng et al. 2023, arXiv:2311.03285).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from steering.hidden.overlays import LowRank


class Carried(NamedTuple):
    """An overlay on a row, by its name, and the factor on what it adds."""

    name: str
    scale: float = 1.0


@dataclass(frozen=True)
class _Pairs:
    """The pairs of a row and an overlay at some layers: `rows` are the rows that have one, None for
    all; `owner [pairs]` is the place of each pair's row among them, None where each has one pair;
    `slots [pairs]` are the overlays, `scales [pairs, 1, 1]` their factors."""

    rows: Tensor | None
    owner: Tensor | None
    slots: Tensor
    scales: Tensor

    @classmethod
    def of(
        cls,
        carried: Sequence[Sequence[Carried]],
        members: Sequence[str],
        device: torch.device,
        dtype: torch.dtype,
    ) -> _Pairs | None:
        """The pairs of a forward whose row i carries `carried[i]`, with the overlays `members`;
        None without any."""
        slot_of = {name: slot for slot, name in enumerate(members)}
        pairs = [
            (row, slot_of[each.name], each.scale)
            for row, overlays in enumerate(carried)
            for each in overlays
            if each.name in slot_of
        ]
        if not pairs:
            return None
        at, slots, scales = zip(*pairs, strict=True)
        rows = [*dict.fromkeys(at)]
        place = {row: i for i, row in enumerate(rows)}
        several = len(rows) < len(pairs)
        return cls(
            rows=None if len(rows) == len(carried) else torch.tensor(rows, device=device),
            owner=torch.tensor([place[row] for row in at], device=device) if several else None,
            slots=torch.tensor(slots, device=device),
            scales=torch.tensor(scales, device=device, dtype=dtype)[:, None, None],
        )


@dataclass(frozen=True)
class _Layer:
    """`reads [members, in, rank]` and `writes [members, rank, out]` of the overlays `members`."""

    module: nn.Linear
    members: tuple[str, ...]
    reads: Tensor
    writes: Tensor

    def added(self, pairs: _Pairs, states: Tensor, output: Tensor) -> Tensor:
        """`output [forward rows, tokens, out]` with the overlays of `pairs`; the other rows keep
        their bits."""
        kept = output if pairs.rows is None else output[pairs.rows]
        chosen = states if pairs.rows is None else states[pairs.rows]
        if pairs.owner is not None:
            chosen = chosen[pairs.owner]
        read = torch.bmm(chosen.to(self.reads.dtype), self.reads[pairs.slots])
        change = torch.bmm(read * pairs.scales, self.writes[pairs.slots])
        if pairs.owner is not None:
            change = change.new_zeros(kept.shape).index_add(0, pairs.owner, change)
        changed = (kept + change).to(output.dtype)
        return changed if pairs.rows is None else output.index_copy(0, pairs.rows, changed)


class LowRankProducts:
    """The overlays of one model, by name; each has factors for some of `linears`, by path.

    Outside of `acting` the model has no hooks of them.
    """

    def __init__(
        self,
        linears: Mapping[str, nn.Linear],
        overlays: Mapping[str, Mapping[str, LowRank]],
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self._names = frozenset(overlays)
        self._device, self._dtype = device, dtype
        self._layers = []
        for path, linear in linears.items():
            factors = {name: each[path] for name, each in overlays.items() if path in each}
            if factors:
                self._layers.append(_stacked(linear, factors, device, dtype))
        self._last: tuple[Any, list[tuple[_Layer, _Pairs]]] = (None, [])

    def __contains__(self, name: str) -> bool:
        return name in self._names

    @property
    def modules(self) -> list[nn.Linear]:
        """The layers that have an overlay."""
        return [layer.module for layer in self._layers]

    @contextmanager
    def acting(self, carried: Sequence[Sequence[Carried]]) -> Iterator[None]:
        """Apply overlays to the forward inside, whose row `i` carries `carried[i]`.

        A layer gets a hook where a row carries one of its overlays.
        """
        if not any(carried):
            yield
            return
        handles = [
            layer.module.register_forward_hook(partial(_hook, layer, pairs))
            for layer, pairs in self._pairs(carried)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _pairs(self, carried: Sequence[Sequence[Carried]]) -> list[tuple[_Layer, _Pairs]]:
        """The layers with pairs; those of the last forward are kept, most go on as they were."""
        key = tuple(map(tuple, carried))
        if self._last[0] != key:
            sets = {layer.members for layer in self._layers}
            pairs = {
                members: _Pairs.of(carried, members, self._device, self._dtype) for members in sets
            }
            self._last = (
                key,
                [
                    (layer, found)
                    for layer in self._layers
                    if (found := pairs[layer.members]) is not None
                ],
            )
        return self._last[1]


def _hook(layer: _Layer, pairs: _Pairs, _module: Any, inputs: Any, output: Tensor) -> Tensor:
    return layer.added(pairs, inputs[0], output)


def _stacked(
    linear: nn.Linear, factors: Mapping[str, LowRank], device: torch.device, dtype: torch.dtype
) -> _Layer:
    rank = max(len(each.read) for each in factors.values())
    reads = [pad(each.read, (0, 0, 0, rank - len(each.read))) for each in factors.values()]
    writes = [pad(each.write, (0, rank - len(each.read))) for each in factors.values()]
    return _Layer(
        linear,
        tuple(factors),
        torch.stack(reads).mT.contiguous().to(device, dtype),
        torch.stack(writes).mT.contiguous().to(device, dtype),
    )
