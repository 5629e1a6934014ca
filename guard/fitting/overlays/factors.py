"""The factors of an overlay as an artifact has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from guard.artifact import MAX_FILE_BYTES
from guard.errors import DataError


@dataclass(frozen=True, eq=False)
class Factors:
    """`ΔW ≈ writesᵀ reads` by layer, float32: `reads [rank, in, ...]`, `writes [rank, out]`.

    `shares` has for each layer that was cut the shares of its change's energy that 1, 2, ...
    directions keep.
    """

    reads: Mapping[str, Tensor]
    writes: Mapping[str, Tensor]
    shares: Mapping[str, Tensor] = field(default_factory=dict)

    def share(self, layer: str) -> float:
        """The share of a change's energy that its factors keep."""
        return (
            float(self.shares[layer][len(self.reads[layer]) - 1]) if layer in self.shares else 1.0
        )

    def require_kept(self, least: float) -> None:
        """Raise DataError where a layer keeps less than `least` of its change's energy, naming the
        worst and the rank that would do; and for factors that are too many for an artifact."""
        poor = [name for name in self.reads if self.share(name) < least]
        if poor:
            worst = min(poor, key=self.share)
            needed = max(int((self.shares[name] < least).sum()) + 1 for name in poor)
            raise DataError(
                f"{len(poor)} of {len(self.reads)} layers keep less than {least:.0%} of what their "
                f"change does, {worst} the least, {self.share(worst):.0%}: give --rank {needed}, "
                "or a lower --least-share"
            )
        size = 4 * sum(f.numel() for by in (self.reads, self.writes) for f in by.values())
        if size > MAX_FILE_BYTES:
            raise DataError(
                f"the factors take {size / 2**20:.0f} MiB, and an artifact at most "
                f"{MAX_FILE_BYTES // 2**20}: ask for a smaller --rank"
            )

    def tensors(self) -> dict[str, Any]:
        """`reads.GROUP` and `writes.LAYER`; each layer is a group of its own, by its number."""
        reads = {f"reads.{i}": f.numpy() for i, f in enumerate(self.reads.values())}
        return reads | {f"writes.{name}": f.numpy() for name, f in self.writes.items()}

    def settings(self) -> dict[str, Any]:
        """`groups` of layers; where layers were cut their `shares`, and the least `share`."""
        settings: dict[str, Any] = {"groups": {str(i): [name] for i, name in enumerate(self.reads)}}
        if self.shares:
            settings["shares"] = {name: round(self.share(name), 6) for name in self.shares}
            settings["share"] = min(map(self.share, self.shares))
        return settings
