"""Random prompts and guards for the embedding seam, of two token streams and a pooled one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steering.images.conditioning import Conditioning
from steering.methods.fitted import FittedGuard

WIDTHS = {"clip": 6, "t5": 10, "pooled": 4}
TOKENS = {"clip": 5, "t5": 7, "pooled": 1}
STREAMS = tuple(WIDTHS)

Tensors = Mapping[str, NDArray[Any]]


def prompts(rows: int, seed: int = 0) -> Conditioning:
    """Prompts of different lengths; the first fills its streams, the last has one token."""
    generator = torch.Generator().manual_seed(seed)
    states, masks = {}, {}
    for name, width in WIDTHS.items():
        tokens = TOKENS[name]
        states[name] = torch.randn(rows, tokens, width, generator=generator)
        lengths = torch.randint(1, tokens + 1, (rows,), generator=generator)
        lengths[0], lengths[-1] = tokens, 1
        masks[name] = torch.arange(tokens) < lengths[:, None]
    return Conditioning(states, masks)


def basis(rank: int, width: int, rng: np.random.Generator) -> NDArray[Any]:
    """Orthonormal rows `[rank, width]`."""
    return np.linalg.qr(rng.standard_normal((width, rank)))[0].T


def guard(
    name: str, tensors: Tensors, settings: Mapping[str, Any], streams: tuple[str, ...] = STREAMS
) -> FittedGuard:
    """A guard as in an artifact."""
    floats = {key: values.astype("f4") for key, values in tensors.items()}
    return FittedGuard(name, floats, {"streams": list(streams)} | dict(settings))


def bits_are_kept(before: Conditioning, after: Conditioning, touched: Tensor) -> bool:
    """Whether all rows but `touched [rows]` are bit-identical."""
    return all(
        torch.equal(state[~touched], after.states[name][~touched])
        for name, state in before.states.items()
    )
