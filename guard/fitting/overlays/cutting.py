"""Changes cut to a rank in the metric of the states that their layers are given.

`ΔW` of rank r that is nearest to a layer's change over its inputs, `min E‖(ΔW - ΔW_r) x‖²`, is
`U Uᵀ ΔW` with the r leading eigenvectors `U` of `S = ΔW C ΔWᵀ`, `C = E[x xᵀ] + εI`: the second
moment of what the change adds to the layer's output. So `S` is summed over recorded forwards, and
neither `C` nor its root is needed; convolutions go the same way. The share of the trace of `S` that
stays is the share of energy that is kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from guard.errors import DataError
from guard.fitting.overlays.base import Base
from guard.fitting.overlays.changes import Change
from guard.fitting.overlays.factors import Factors

RIDGE = 1e-3
"""ε, in units of the mean square of a layer's inputs."""
ENOUGH = 0.999
"""A layer gets no more directions than keep this share: the rest is rounding of the checkpoint."""


@dataclass(eq=False)
class Energy:
    """What the change of one layer adds to its output in recorded forwards.

    `write [out, k]`, with orthonormal columns, None for the unit matrix, times `read [k, in, ...]`
    is the change; `moment [k, k]` sums `z zᵀ`, `z = read x`, in float64, over `places`; `squares`
    sums the mean squares of `x`.
    """

    write: Tensor | None
    read: Tensor
    moment: Tensor = field(init=False)
    places: int = 0
    squares: float = 0.0

    def __post_init__(self) -> None:
        self.moment = torch.zeros(len(self.read), len(self.read), dtype=torch.float64)

    @classmethod
    def of(cls, change: Change) -> Energy:
        """Of a change in as few rows as it can have."""
        flat = change.read.flatten(1)
        left = change.write
        if left is None and len(flat) > flat.shape[1]:
            left, flat = torch.linalg.qr(flat)
        elif left is not None:
            left, right = torch.linalg.qr(left)
            flat = right @ flat
        return cls(left, flat.reshape(len(flat), *change.read.shape[1:]))

    def add(self, states: Tensor, module: nn.Module) -> None:
        """Add the inputs of a forward of the layer."""
        states = states.detach().float()
        read = self.read.to(states.device)
        if isinstance(module, nn.Conv2d):
            z = F.conv2d(states, read, None, module.stride, module.padding, module.dilation)
            z = z.movedim(1, -1)
        else:
            z = F.linear(states, read)
        z = z.flatten(0, -2)
        self.moment += (z.mT @ z).double().cpu()
        self.places += len(z)
        self.squares += len(z) * float(states.square().mean())

    def cut(self, rank: int | None) -> tuple[Tensor, Tensor, Tensor]:
        """`writes [r, out]` and `reads [r, in, ...]` of the change at the rank of at most `rank`,
        and the shares of energy that 1, 2, ... directions keep."""
        flat = self.read.flatten(1).double()
        # where all inputs were zero, the ridge alone is the metric
        moment = self.moment + RIDGE * (self.squares or 1.0) * (flat @ flat.T)
        values, vectors = torch.linalg.eigh(moment)
        values, vectors = values.flip(0).clamp(min=0.0), vectors.flip(1)
        shares = values.cumsum(0) / values.sum()
        enough = int((shares < ENOUGH).sum()) + 1
        used = min(enough, len(values), rank or len(values))
        chosen = vectors[:, :used]
        writes = chosen if self.write is None else self.write.double() @ chosen
        reads = (chosen.T @ flat).reshape(used, *self.read.shape[1:])
        return writes.T.float().contiguous(), reads.float(), shares


@contextmanager
def energies(base: Base, changes: Mapping[str, Change]) -> Iterator[dict[str, Energy]]:
    """Record what the changes would add in the forwards of the base inside the context: layer →
    energy, for the layers that are run. The base's outputs stay as they are."""
    recorded: dict[str, Energy] = {}

    def hook(name: str) -> Any:
        def record(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if name not in recorded:
                recorded[name] = Energy.of(changes[name])
            recorded[name].add(inputs[0], module)

        return record

    handles = [base.module(name).register_forward_pre_hook(hook(name)) for name in changes]
    try:
        yield recorded
    finally:
        for handle in handles:
            handle.remove()


def factors_of(
    changes: Mapping[str, Change], recorded: Mapping[str, Energy], rank: int | None, default: int
) -> Factors:
    """The factors of the layers that were run. Changes of whole weights are cut to `rank`, or where
    it is None to `default`; those of adapters are cut where a rank is given, else taken exactly.

    Raises DataError for a rank that no layer has.
    """
    _require_rank(changes, rank)
    reads, writes, shares = {}, {}, {}
    for name, energy in recorded.items():
        change = changes[name]
        if change.write is not None and rank is None:
            reads[name], writes[name] = change.read, change.write.T.contiguous()
        else:
            writes[name], reads[name], shares[name] = energy.cut(rank or default)
    return Factors(reads, writes, shares)


def _require_rank(changes: Mapping[str, Change], rank: int | None) -> None:
    full = {
        name: min(_out(change), prod(change.read.shape[1:])) for name, change in changes.items()
    }
    if rank is not None and rank > max(full.values(), default=rank):
        raise DataError(
            f"a rank of {rank} is larger than that of any layer: at most {max(full.values())}"
        )
    if rank is None:
        for name, change in changes.items():
            if change.write is not None and len(change.read) > full[name]:
                raise DataError(
                    f"the factors of {name} have the rank {len(change.read)}, larger than the "
                    f"layer's, {full[name]}: ask for a smaller --rank"
                )


def _out(change: Change) -> int:
    return len(change.read if change.write is None else change.write)
