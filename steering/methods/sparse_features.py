"""Features of a sparse autoencoder, taken out of the states that they were found in.

A state `h` has the features `f_i = z_i` where `z_i = e_i · h + b_i` is over `θ_i`, else 0. Without
those that are chosen it is `h' = h - s Σ_i f_i d_i`: what the autoencoder does not say of a state
stays in it, and a state with no chosen feature stays as it is. Which others are active does not
matter, so that a guard has the rows of its own features alone (`BatchTopK`, arXiv 2412.06410).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from steering.methods.fitted import FittedGuard


@dataclass(frozen=True)
class SparseFeatures:
    """Features of one place, float32, with any leading shape that all four have: `reads [...,
    features, width]` (e), `offsets [..., features]` (b), `cuts [..., features]` (θ), at least 0,
    and `writes [..., features, width]` (d).

    Raises ValueError for tensors that do not fit each other, and for negative cuts: a row of zeros
    must be a feature that is never active.
    """

    reads: Tensor
    offsets: Tensor
    cuts: Tensor
    writes: Tensor

    def __post_init__(self) -> None:
        shape = self.reads.shape
        if self.reads.ndim < 2 or self.writes.shape != shape:
            raise ValueError("reads and writes must be [..., features, width]")
        if self.offsets.shape != shape[:-1] or self.cuts.shape != shape[:-1]:
            raise ValueError("offsets and cuts must be [..., features], as many as reads has")
        if bool((self.cuts < 0).any()):
            raise ValueError("cuts must be at least 0")

    @classmethod
    def of(cls, guard: FittedGuard, place: str = "") -> SparseFeatures:
        """Those of an artifact, at one of its places where they have one. Raises ValueError."""
        matrix, vector = (2, 1) if place else (3, 2)
        end = f".{place}" if place else ""
        return cls(
            guard.array(f"reads{end}", matrix),
            guard.array(f"offsets{end}", vector),
            guard.array(f"cuts{end}", vector),
            guard.array(f"writes{end}", matrix),
        )

    @property
    def parts(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """`reads`, `offsets`, `cuts` and `writes`."""
        return self.reads, self.offsets, self.cuts, self.writes


def activations(reads: Tensor, offsets: Tensor, cuts: Tensor, states: Tensor) -> Tensor:
    """`f [..., n, features]` of `states [..., n, width]`, float32."""
    z = states @ reads.mT + offsets[..., None, :]
    return torch.where(z > cuts[..., None, :], z, 0.0)


def contributions(features: Sequence[Tensor], states: Tensor) -> Tensor:
    """`Σ_i f_i d_i [..., n, width]` of `states [..., n, width]`; `features` are the `parts` of
    SparseFeatures, with the leading shape of the states."""
    reads, offsets, cuts, writes = features
    return activations(reads, offsets, cuts, states) @ writes
