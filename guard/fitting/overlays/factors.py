"""The factors of an overlay as an artifact has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from guard.artifact import MAX_FILE_BYTES
from guard.errors import DataError


@dataclass(frozen=True, eq=False)
class Factors:
    """`ΔW ≈ writesᵀ reads` by layer, float32: `reads [rank, in, ...]`, `writes [rank, out]`.

    `shares` is the share of each change's energy that its factors keep, `needed` the rank that
    would keep the share `KEPT`; both may be left out where nothing was cut.
    """

    KEPT: ClassVar[float] = 0.9
    """The least share that is taken without being asked."""

    reads: Mapping[str, Tensor]
    writes: Mapping[str, Tensor]
    shares: Mapping[str, float] = field(default_factory=dict)
    needed: Mapping[str, int] = field(default_factory=dict)

    def require_kept(self, *, accept_loss: bool) -> None:
        """Raise DataError, naming the worst layer, where one keeps less than `KEPT`, unless that is
        accepted; and for factors that an artifact cannot hold."""
        poor = [name for name, share in self.shares.items() if share < self.KEPT]
        if poor and not accept_loss:
            worst = min(poor, key=lambda name: self.shares[name])
            raise DataError(
                f"{len(poor)} of {len(self.reads)} layers keep less than {self.KEPT:.0%} of what "
                f"their change does, {worst} the least, {self.shares[worst]:.0%}: ask for --rank "
                f"{max(self.needed[name] for name in poor)}, or accept it with --accept-loss"
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
        """`groups`, `ranks` and `shares` by layer, and the least `share`."""
        settings: dict[str, Any] = {"groups": {str(i): [name] for i, name in enumerate(self.reads)}}
        if self.shares:
            settings["shares"] = {name: round(share, 6) for name, share in self.shares.items()}
            settings["share"] = min(self.shares.values())
        return settings
