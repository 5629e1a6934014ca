"""A search over token sequences: greedy swaps, guided by a gradient."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Candidate:
    """The best sequence `[length]` after `effort` steps, and its last computed loss."""

    effort: int
    content: Tensor
    loss: float


class Objective(Protocol):
    """A loss over sequences, which the attacker minimises."""

    def renew(self, step: int) -> None:
        """Sample the noise of a step, which all sequences compared in it share."""

    def gradient(self, content: Tensor) -> Tensor:
        """Gradient of the loss of `[length]` by one-hot tokens, `[length, vocabulary]`."""

    def losses(self, candidates: Tensor) -> Tensor:
        """Losses `[n]` of `[n, length]`; infinite for sequences that cannot be typed."""


def greedy_swaps(
    start: Tensor,
    vocabulary: Tensor,
    objective: Objective,
    *,
    steps: int,
    candidates: int,
    top: int,
    generator: torch.Generator,
) -> Iterator[Candidate]:
    """Greedy coordinate descent over tokens (GCG: Zou et al., arXiv 2307.15043).

    Each step proposes `candidates` swaps of one token each, sampled from the `top` tokens of
    `vocabulary` with the steepest descent, and takes the best one if it is better than the current
    sequence. The first result is the start itself, with effort 0.
    """
    current, length = start.clone(), len(start)
    for step in range(steps + 1):
        objective.renew(step)
        if step == 0:
            yield Candidate(0, current.clone(), float(objective.losses(current[None])[0]))
            continue
        slope = objective.gradient(current)[:, vocabulary]
        best = slope.topk(min(top, len(vocabulary)), largest=False).indices
        place = torch.randint(length, (candidates,), generator=generator)
        which = torch.randint(best.shape[1], (candidates,), generator=generator)
        swaps = current.repeat(candidates + 1, 1)
        swaps[torch.arange(candidates), place] = vocabulary[best[place, which]]
        # the last one is the current sequence, under the same noise: it stays unless a swap is
        # better
        losses = objective.losses(swaps)
        chosen = int(losses.argmin()) if losses[-1] > losses.min() else candidates
        current = swaps[chosen]
        yield Candidate(step, current.clone(), float(losses[chosen]))
