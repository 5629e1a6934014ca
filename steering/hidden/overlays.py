"""Low-rank overlays of linear layers inside the decoder layers, of guards and of adapters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class LowRank:
    """`y + write (read x)` for a linear layer's `y`: `read [rank, in]`, and `write [out, rank]`,
    which has any scale in it. On the CPU."""

    read: Tensor
    write: Tensor


@dataclass(frozen=True)
class LinearOverlay:
    """What a guard adds to linear layers, by their paths in the model, on rows on which it fires.

    The guard decides once the prompt is read, by the bare model. With `rereads` the prompt of a row
    on which it fires is read again under the overlay, and the answer is that of a model with the
    changed weights; without, its last token alone is: the keys and values before it stay the bare
    model's.
    """

    factors: Mapping[str, LowRank]
    rereads: bool = True
