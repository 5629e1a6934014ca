"""A search over token sequences: greedy swaps, led by a gradient."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Found:
    """The best sequence `[length]` after `effort` steps, and its loss when last looked at."""

    effort: int
    content: Tensor
    loss: float


class Objective(Protocol):
    """A loss over sequences; small is what the attacker wants."""

    def renew(self, step: int) -> None:
        """Draw the noise of a step anew, the same for all sequences that it compares."""

    def gradient(self, content: Tensor) -> Tensor:
        """Of the loss of `[length]` with respect to one-hot tokens, `[length, vocabulary]`."""

    def losses(self, candidates: Tensor) -> Tensor:
        """`[n]` of `[n, length]`; infinite where a sequence cannot be typed."""


def greedy_swaps(
    start: Tensor,
    vocabulary: Tensor,
    objective: Objective,
    *,
    steps: int,
    candidates: int,
    top: int,
    generator: torch.Generator,
) -> Iterator[Found]:
    """Greedy coordinate descent over tokens (GCG: Zou et al., arXiv 2307.15043).

    Each step proposes `candidates` swaps of one token each, drawn from the `top` tokens of
    `vocabulary` whose one-hot slope falls most, and takes the best one if it is better than what
    is there. The first result is the start itself, effort 0.
    """
    held, length = start.clone(), len(start)
    for step in range(steps + 1):
        objective.renew(step)
        if step == 0:
            yield Found(0, held.clone(), float(objective.losses(held[None])[0]))
            continue
        slope = objective.gradient(held)[:, vocabulary]
        best = slope.topk(min(top, len(vocabulary)), largest=False).indices
        place = torch.randint(length, (candidates,), generator=generator)
        which = torch.randint(best.shape[1], (candidates,), generator=generator)
        tried = held.repeat(candidates + 1, 1)
        tried[torch.arange(candidates), place] = vocabulary[best[place, which]]
        # the last one is what is there: judged under the same noise, it stays where none is better
        losses = objective.losses(tried)
        chosen = int(losses.argmin()) if losses[-1] > losses.min() else candidates
        held = tried[chosen]
        yield Found(step, held.clone(), float(losses[chosen]))
