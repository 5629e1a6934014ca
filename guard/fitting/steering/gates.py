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

from steering.hidden.bank import Tokens
from steering.methods.steer import soft_gate

POOL = 3
ROUNDS = 5
RIDGE = 1e-2
FORGET_WEIGHT = 0.3
NEAR_WEIGHT = 3.0
"""Weight of the tokens of near misses, which are the hardest to tell apart."""

CHUNK = 2**16
"""Tokens whose states are widened to float32 at a time."""


def pool_of(tokens: Tokens) -> int:
    """The number of token scores that a guard of these tokens takes the mean of."""
    return 1 if tokens == "last" else POOL


@dataclass(frozen=True)
class TokenStates:
    """States of all tokens of some sequences, except the first of each.

    `states [tokens, layers, width]` are float16, `sequence [tokens]` is the index of each token's
    sequence, and `behind_prefix [tokens]` is False in the prefix that all sequences share.
    `image [tokens]` marks the placeholder tokens of images, and `last [tokens]` the last token of
    each prompt and those of its answer; None where no token is an image's.
    """

    states: Tensor
    sequence: Tensor
    behind_prefix: Tensor
    count: int
    image: Tensor | None = None
    last: Tensor | None = None

    def only(self, tokens: Tokens) -> TokenStates:
        """The states of the tokens that a guard of `tokens` scores (`steering.hidden.bank`)."""
        if tokens == "all":
            return self
        if tokens == "last":
            assert self.last is not None
            return self._chosen(self.last)
        of_image = torch.zeros_like(self.behind_prefix) if self.image is None else self.image
        return self._chosen(of_image if tokens == "image" else ~of_image)

    def of(self, sequences: Tensor) -> TokenStates:
        """The states of the sequences that the mask `sequences [count]` chooses."""
        chosen = self._chosen(sequences[self.sequence])
        number = sequences.long().cumsum(0) - 1
        return TokenStates(
            chosen.states,
            number[chosen.sequence],
            chosen.behind_prefix,
            int(sequences.sum()),
            chosen.image,
            chosen.last,
        )

    @classmethod
    def joined(cls, parts: Sequence[TokenStates], shared: int) -> TokenStates:
        """The states of all sequences of text of some, which share their first `shared` tokens."""
        lengths = torch.cat([torch.bincount(part.sequence, minlength=part.count) for part in parts])
        start = lengths.cumsum(0) - lengths
        sequence = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
        # the first token of each is not among its states
        place = torch.arange(len(sequence)) - start[sequence] + 1
        states = torch.cat([part.states for part in parts])
        return cls(states, sequence, place >= shared, len(lengths))

    def means(self, layer: int) -> Tensor:
        """The mean state of each sequence's tokens behind the prefix, at the index `layer`:
        `[sequences, width]`."""
        sequence = self.sequence[self.behind_prefix]
        total = torch.zeros(self.count, self.states.shape[-1])
        total.index_add_(0, sequence, self.states[self.behind_prefix, layer].float())
        return total / torch.bincount(sequence, minlength=self.count).clamp(min=1)[:, None]

    def _chosen(self, mask: Tensor) -> TokenStates:
        return TokenStates(
            self.states[mask],
            self.sequence[mask],
            self.behind_prefix[mask],
            self.count,
            None if self.image is None else self.image[mask],
            None if self.last is None else self.last[mask],
        )

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

    def scores(self, layers: Sequence[int], gates: Tensor, pool: int) -> Tensor:
        """The pooled scores `[guards, sequences]` of several gates `[guards, len(layers), width]`.

        All gates read a token's states at once, as the runtime does."""
        flat = gates.flatten(1).T
        parts = [
            part[:, list(layers)].float().flatten(1) @ flat
            for part in torch.split(self.states, CHUNK)
        ]
        by_guard = torch.cat(parts).T
        return torch.stack([self.pooled(scores, pool) for scores in by_guard])


@dataclass(frozen=True)
class RetainStatistics:
    """The statistics of retain prompts at the layers `picked`, indices into states, and gates that
    respect them.

    The layers are scaled, `scale [layers]`, since the residual stream grows with depth and the
    ridge term would favour late layers. `gram` is the weighted Gram matrix `[layers * width] x 2`
    of the scaled states, float64, and `weight` the sum of the tokens' weights.
    """

    picked: tuple[int, ...]
    scale: Tensor
    gram: Tensor
    weight: float

    @classmethod
    def of(cls, retain: TokenStates, near: Tensor, layers: Sequence[int]) -> RetainStatistics:
        """From states; `near [retain sequences]` marks near misses."""
        picked = tuple(layers)
        scale = 1.0 / _mean_size(retain.states, picked).clamp(min=1e-6)
        weight = torch.where(near[retain.sequence], NEAR_WEIGHT, 1.0)
        # the template's prefix is the same in every sequence: a tenth of the weight is enough
        weight = torch.where(retain.behind_prefix, weight, 0.1)
        gram = _gram(retain.states[:, list(picked)], weight, scale)
        return cls(picked, scale, gram, float(weight.sum()))

    def gate(self, forget: TokenStates, near: Tensor | None = None) -> Tensor:
        """Gates `[len(layers), width]`, solved jointly over the layers; `near`, as `gram_of` gives
        it, is the Gram matrix of further near misses."""
        gram = self.gram if near is None else self.gram + near
        f = self._flat(forget.states)
        positive = forget.behind_prefix.nonzero()[:, 0]
        for _ in range(ROUNDS):
            balance = FORGET_WEIGHT * self.weight / len(positive)
            solved = soft_gate(f[positive], gram, RIDGE, balance).float()
            positive = _highest(forget, f @ solved)
        return solved.reshape(len(self.picked), -1) * self.scale[:, None]

    def gram_of(self, states: TokenStates) -> Tensor:
        """The Gram matrix of near misses, weighted as those among the retain prompts."""
        return self._weighted(states, NEAR_WEIGHT)

    def plain_gram_of(self, states: TokenStates) -> Tensor:
        """The Gram matrix of retain prompts that are no near misses."""
        return self._weighted(states, 1.0)

    def _weighted(self, states: TokenStates, weight_of_token: float) -> Tensor:
        weight = torch.where(states.behind_prefix, weight_of_token, 0.1)
        return _gram(states.states[:, list(self.picked)], weight, self.scale)

    def _flat(self, states: Tensor) -> Tensor:
        return (states[:, list(self.picked)].float() * self.scale[:, None]).flatten(1)


def fit_gates(
    forget: TokenStates, retain: TokenStates, near: Tensor, layers: Sequence[int]
) -> Tensor:
    """Gates `[len(layers), width]` of one guard; `near [retain sequences]` marks near misses."""
    return RetainStatistics.of(retain, near, layers).gate(forget)


def _gram(states: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """The weighted Gram matrix of `states [tokens, layers, width]`, each layer scaled."""
    total: Tensor | None = None
    for part, share in zip(torch.split(states, CHUNK), torch.split(weight, CHUNK), strict=True):
        r = (part.float() * scale[:, None]).flatten(1)
        gram = ((r * share[:, None]).T @ r).double()
        total = gram if total is None else total + gram
    assert total is not None
    return total


def _mean_size(states: Tensor, layers: Sequence[int]) -> Tensor:
    """Mean absolute state of each of `layers`, `[len(layers)]`."""
    parts = [
        part[:, list(layers)].float().abs().mean((0, 2)) for part in torch.split(states, CHUNK)
    ]
    if len(parts) == 1:
        return parts[0]
    sizes = torch.tensor([len(part) for part in torch.split(states, CHUNK)])
    return (torch.stack(parts) * sizes[:, None]).sum(0) / sizes.sum()


def _highest(forget: TokenStates, scores: Tensor) -> Tensor:
    """Indices of the POOL highest tokens behind the prefix of each sequence."""
    order = torch.argsort(scores.masked_fill(~forget.behind_prefix, -torch.inf), descending=True)
    order = order[forget.behind_prefix[order]]
    by_sequence = order[torch.argsort(forget.sequence[order], stable=True)]
    owner = forget.sequence[by_sequence]
    lengths = torch.bincount(owner, minlength=forget.count)
    rank = torch.arange(len(owner)) - (lengths.cumsum(0) - lengths)[owner]
    return by_sequence[rank < POOL]
