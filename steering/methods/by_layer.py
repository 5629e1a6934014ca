"""Tensors of stacked guards, by the decoder layer that they belong to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def stacked_by_layer(
    parts: Sequence[tuple[Sequence[int], Tensor]],
    device: torch.device | str,
    *,
    fill: float = 0.0,
) -> dict[int, Tensor]:
    """Layer → `[guards, ...]`, of each guard's layers and its tensor `[layers, ...]`; `fill` where
    a guard has nothing, or less than others.

    Raises ValueError for tensors whose last dimensions, the width, differ.
    """
    if len({tensor.shape[-1] for _, tensor in parts}) > 1:
        raise ValueError("the guards of a bank must be of one width, that of the model")
    sizes = [max(each) for each in zip(*(tensor.shape[1:] for _, tensor in parts), strict=True)]
    stacked = {}
    for layer in sorted({layer for layers, _ in parts for layer in layers}):
        rows = torch.full((len(parts), *sizes), fill)
        for row, (layers, tensor) in zip(rows, parts, strict=True):
            if layer in layers:
                own = tensor[layers.index(layer)]
                row[tuple(map(slice, own.shape))] = own
        stacked[layer] = rows.to(device)
    return stacked


def copy_by_layer(
    mine: Mapping[int, Tensor], theirs: Mapping[int, Tensor], *, fill: float = 0.0
) -> None:
    """Copy tensors by layer in place; `fill` where `theirs` has no such layer."""
    for layer, tensor in mine.items():
        tensor.copy_(theirs[layer]) if layer in theirs else tensor.fill_(fill)
