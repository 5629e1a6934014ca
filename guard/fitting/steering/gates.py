"""The gate of a steering guard: states in, weights and pooled scores out.

A forget prompt says its topic in some of its tokens only, and nobody marks which. The gate is
therefore solved a few times over (multiple-instance learning): all tokens of the forget prompts
count as positive at first, then the ones that the last solution scores highest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from steering.methods.steer import soft_gate

POOL = 3
ROUNDS = 5
RIDGE = 1e-2
FORGET_WEIGHT = 0.3
NEAR_WEIGHT = 3.0
"""Near misses are what the gate must tell apart: their tokens count three times."""


@dataclass(frozen=True)
class TokenStates:
    """States of all tokens of some sequences, the first of each left out.

    `states [tokens, layers, width]` float16, `sequence [tokens]` says which one a token belongs
    to, `own [tokens]` whether it lies behind the template's prefix that all sequences share.
    """

    states: Tensor
    sequence: Tensor
    own: Tensor
    count: int

    def pooled(self, token_scores: Tensor) -> Tensor:
        """Mean of the POOL largest scores of each sequence, `[sequences]`; missing ones are 0."""
        lengths = torch.bincount(self.sequence, minlength=self.count)
        start = lengths.cumsum(0) - lengths
        column = torch.arange(len(self.sequence)) - start[self.sequence]
        padded = torch.full((self.count, int(lengths.max())), -torch.inf)
        padded[self.sequence, column] = token_scores
        zeros = torch.zeros(self.count, POOL)
        return torch.cat([padded, zeros], dim=1).topk(POOL, dim=1).values.mean(1)

    def score(self, layers: Sequence[int], gates: Tensor) -> Tensor:
        """Token gates for `gates [len(layers), width]`, `layers` indexing the states' own."""
        picked = self.states[:, list(layers)].float()
        return torch.einsum("tlw,lw->t", picked, gates)


def fit_gates(
    forget: TokenStates, retain: TokenStates, near: Tensor, layers: Sequence[int]
) -> Tensor:
    """Gates `[len(layers), width]`, solved jointly over the concatenated layers.

    `near [retain sequences]` marks near misses. Layers are brought to one scale first, since the
    residual stream grows with depth and the ridge term would favour the late ones.
    """
    picked = list(layers)
    scale = 1.0 / retain.states[:, picked].float().abs().mean((0, 2)).clamp(min=1e-6)

    def flat(states: Tensor) -> Tensor:
        return (states[:, picked].float() * scale[:, None]).flatten(1)

    weight = torch.where(near[retain.sequence], NEAR_WEIGHT, 1.0)
    # the template's prefix is the same in every sequence: a tenth of its copies says as much
    weight = torch.where(retain.own, weight, 0.1)
    r = flat(retain.states)
    retain_gram = ((r * weight[:, None]).T @ r).double()
    f = flat(forget.states)
    positive = forget.own.nonzero()[:, 0]
    width = forget.states.shape[-1]
    for _ in range(ROUNDS):
        balance = FORGET_WEIGHT * float(weight.sum()) / len(positive)
        solved = soft_gate(f[positive], retain_gram, RIDGE, balance).float()
        positive = _highest(forget, f @ solved)
    return solved.reshape(len(picked), width) * scale[:, None]


def _highest(forget: TokenStates, scores: Tensor) -> Tensor:
    """Indices of the POOL highest own tokens of each sequence."""
    order = torch.argsort(scores.masked_fill(~forget.own, -torch.inf), descending=True)
    order = order[forget.own[order]]
    by_sequence = order[torch.argsort(forget.sequence[order], stable=True)]
    owner = forget.sequence[by_sequence]
    lengths = torch.bincount(owner, minlength=forget.count)
    rank = torch.arange(len(owner)) - (lengths.cumsum(0) - lengths)[owner]
    return by_sequence[rank < POOL]
