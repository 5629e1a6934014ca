"""The gate of a steering guard: states in, weights and pooled scores out.

Only some tokens of a forget prompt carry its topic, and they are not labelled. The gate is
therefore solved several times (multiple-instance learning): first all tokens of the forget prompts
count as positive, then those with the highest scores of the previous solution.
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
"""Weight of the tokens of near misses, which are the hardest to tell apart."""


@dataclass(frozen=True)
class TokenStates:
    """States of all tokens of some sequences, except the first of each.

    `states [tokens, layers, width]` are float16, `sequence [tokens]` is the index of each token's
    sequence, and `behind_prefix [tokens]` is False in the prefix that all sequences share.
    """

    states: Tensor
    sequence: Tensor
    behind_prefix: Tensor
    count: int

    def pooled(self, token_scores: Tensor, pool: int = POOL) -> Tensor:
        """Mean of the `pool` largest scores of each sequence, `[sequences]`; missing ones are 0."""
        lengths = torch.bincount(self.sequence, minlength=self.count)
        start = lengths.cumsum(0) - lengths
        column = torch.arange(len(self.sequence)) - start[self.sequence]
        padded = torch.full((self.count, int(lengths.max())), -torch.inf)
        padded[self.sequence, column] = token_scores
        zeros = torch.zeros(self.count, pool)
        return torch.cat([padded, zeros], dim=1).topk(pool, dim=1).values.mean(1)

    def score(self, layers: Sequence[int], gates: Tensor) -> Tensor:
        """Token gates for `gates [len(layers), width]`; `layers` are indices into `states`."""
        picked = self.states[:, list(layers)].float()
        return torch.einsum("tlw,lw->t", picked, gates)


def fit_gates(
    forget: TokenStates, retain: TokenStates, near: Tensor, layers: Sequence[int]
) -> Tensor:
    """Gates `[len(layers), width]`, solved jointly over the concatenated layers.

    `near [retain sequences]` marks near misses. Layers are scaled first, since the residual stream
    grows with depth and the ridge term would favour late layers.
    """
    picked = list(layers)
    scale = 1.0 / retain.states[:, picked].float().abs().mean((0, 2)).clamp(min=1e-6)

    def flat(states: Tensor) -> Tensor:
        return (states[:, picked].float() * scale[:, None]).flatten(1)

    weight = torch.where(near[retain.sequence], NEAR_WEIGHT, 1.0)
    # the template's prefix is the same in every sequence: a tenth of the weight is enough
    weight = torch.where(retain.behind_prefix, weight, 0.1)
    r = flat(retain.states)
    retain_gram = ((r * weight[:, None]).T @ r).double()
    f = flat(forget.states)
    positive = forget.behind_prefix.nonzero()[:, 0]
    width = forget.states.shape[-1]
    for _ in range(ROUNDS):
        balance = FORGET_WEIGHT * float(weight.sum()) / len(positive)
        solved = soft_gate(f[positive], retain_gram, RIDGE, balance).float()
        positive = _highest(forget, f @ solved)
    return solved.reshape(len(picked), width) * scale[:, None]


def _highest(forget: TokenStates, scores: Tensor) -> Tensor:
    """Indices of the POOL highest tokens behind the prefix of each sequence."""
    order = torch.argsort(scores.masked_fill(~forget.behind_prefix, -torch.inf), descending=True)
    order = order[forget.behind_prefix[order]]
    by_sequence = order[torch.argsort(forget.sequence[order], stable=True)]
    owner = forget.sequence[by_sequence]
    lengths = torch.bincount(owner, minlength=forget.count)
    rank = torch.arange(len(owner)) - (lengths.cumsum(0) - lengths)[owner]
    return by_sequence[rank < POOL]
