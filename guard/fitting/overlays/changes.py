"""What a checkpoint changes in a model, layer by layer."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from guard.errors import DataError

NEVER_RUN = "layers that never run"


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

    def without(self, layers: Collection[str], kind: str) -> Difference:
        """With the changes of these layers among the dropped ones of that kind."""
        if not layers:
            return self
        changes = {layer: each for layer, each in self.changes.items() if layer not in layers}
        dropped = {**self.dropped, kind: [*self.dropped.get(kind, ()), *layers]}
        return replace(self, changes=changes, dropped=dropped)

    def run(self, ran: Collection[str], source: object) -> Difference:
        """Of the layers that were run: what the others do is not known. Raises DataError where none
        of those that `source` changes was."""
        left = self.without([layer for layer in self.changes if layer not in ran], NEVER_RUN)
        if not left.changes:
            raise DataError(f"{source}: changes only layers that the base never runs")
        return left
