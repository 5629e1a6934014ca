"""Concept subspaces on a text encoder's states, and moving states within them.

A subspace has orthonormal rows `[rank, width]`; several are stacked and padded with rows of zeros.
Everything is over all rows, tokens and guards at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad


def pooled(states: Tensor, mask: Tensor) -> Tensor:
    """Mean state `[rows, width]` over the real tokens of `states [rows, tokens, width]`."""
    return real_sum(states, mask) / mask.sum(1, keepdim=True).clamp(min=1)


def real_sum(states: Tensor, mask: Tensor) -> Tensor:
    """Sum `[rows, width]` over the real tokens; states at padding are ignored."""
    return states.float().masked_fill(~mask[..., None], 0.0).sum(1)


def principal(samples: Tensor, rank: int) -> Tensor:
    """The `rank` strongest directions `[rank, width]` of `samples [n, width]`, strongest first.

    Fewer where the samples span fewer. The first is their common direction, the later ones are
    those in which they differ.
    """
    _, values, directions = torch.linalg.svd(samples.double(), full_matrices=False)
    spanned = int((values > 1e-6 * values.amax()).sum())
    strongest: Tensor = directions[: min(rank, spanned)]
    return strongest.float()


def stacked(parts: Sequence[Tensor | None]) -> Tensor:
    """`[parts, most rows, width]`: matrices `[rows, width]`, padded with zeros; None is empty.

    At least one part must not be None.
    """
    present = [part for part in parts if part is not None]
    most, empty = max(len(part) for part in present), present[0][:0]
    rows = [empty if part is None else part for part in parts]
    return torch.stack([pad(part, (0, 0, 0, most - len(part))) for part in rows])


def due_first(due: Tensor) -> tuple[Tensor, Tensor]:
    """For `due [rows, guards]`: each row's due guards first, `[rows, most]`, and which are due."""
    most = max(int(due.sum(1).amax()), 1) if len(due) else 1
    order = due.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :most]
    return order, due.gather(1, order)


def shifted(states: Tensor, bases: Tensor, shift: Tensor, *, rtol: float) -> Tensor:
    """Move states so that their coordinates change by `shift`, and as little else as can be.

    `states [rows, tokens, width]`, `bases [rows, directions, width]`, `shift [rows, tokens,
    directions]`: `x + shift (B Bᵀ)⁺ B`. Bases of several guards may overlap: combinations of
    directions with less than `rtol` of the largest eigenvalue of `B Bᵀ` are left alone, since two
    different changes along two nearly equal directions would move a state very far.
    """
    return states + shift @ dual(bases, rtol=rtol)


def dual(bases: Tensor, *, rtol: float) -> Tensor:
    """`(B Bᵀ)⁺ B [rows, directions, width]`: `x Bᵀ` times it is x projected; see `shifted`."""
    gram = bases @ bases.transpose(1, 2)
    inverse: Tensor = torch.linalg.pinv(gram, rtol=rtol, hermitian=True)
    return inverse @ bases
