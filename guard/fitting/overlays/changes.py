"""What a checkpoint changes in a model, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Change:
    """`ΔW` of one layer, float32: `write [out, k]` times `read [k, in, ...]`, or `read [out, in,
    ...]` alone where `write` is None. Convolutions have a height and a width behind `in`."""

    read: Tensor
    write: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Difference:
    """The changes by the name of their layer, and what cannot be served: by kind the names of the
    weights. `layout` says how the file is written."""

    layout: str
    changes: Mapping[str, Change]
    dropped: Mapping[str, Sequence[str]]
