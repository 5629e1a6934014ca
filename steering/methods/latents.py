"""Classifiers of finished latents: does the image show the concept, whatever the prompt said.

What a prompt says does not decide alone what is drawn: prompts can be searched for that no
classifier of embeddings knows. A finished image cannot be disguised that way. What the request
asked for (steps, guidance, negative prompt) has no say in it. The score is the logit of
p(concept), the mean of a guard's members (`classifiers/latents.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from classifiers.latents import LatentClassifiers, stacked
from steering.methods.fitted import FittedGuard


class LatentClassifierGuards:
    """All classifiers of one model, stacked: `sizes[i]` members of guard i, one guard behind the
    other."""

    def __init__(
        self, names: Sequence[str], classifiers: LatentClassifiers, sizes: Sequence[int]
    ) -> None:
        self.names: Sequence[str] = tuple(names)
        self.channels = classifiers.channels
        self._classifiers = classifiers
        ends = list(accumulate(sizes))
        self._members = [range(end - size, end) for end, size in zip(ends, sizes, strict=True)]

    def sense(self, latents: Tensor, columns: Sequence[int]) -> Tensor:
        """The logit of p(concept) `[rows, columns]`, differentiable; NaN for a row not finite."""
        return self.sense_places(latents, columns)[0]

    def sense_places(self, latents: Tensor, columns: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The same, and the votes of which it is made, `[rows, columns, frames, places]`."""
        among, carried = self._classifiers, [self._members[column] for column in columns]
        used = [member for own in carried for member in own]
        if used != list(range(len(among))):
            among = among.select(used)
        votes = among.votes(latents.to(among.weights[0]))
        sizes = torch.tensor([len(own) for own in carried], device=votes.device)
        owner = torch.arange(len(columns), device=votes.device).repeat_interleave(sizes)

        def mean(said: Tensor) -> Tensor:
            blank = said.new_zeros(len(said), len(columns), *said.shape[2:])
            index = owner.view(1, -1, *[1] * (said.ndim - 2)).expand_as(said)
            return blank.scatter_reduce(1, index, said, "mean", include_self=False)

        score = mean(votes.flatten(2).logsumexp(2))
        spoilt = ~latents.isfinite().flatten(1).all(1, keepdim=True)
        return score.masked_fill(spoilt, torch.nan), mean(votes)


def stack(
    guards: Sequence[FittedGuard], device: torch.device | str = "cpu"
) -> LatentClassifierGuards:
    """From artifacts, as `guard fit latents` writes them. Raises ValueError naming a fault."""
    members = [loaded(guard, device) for guard in guards]
    return LatentClassifierGuards(
        [guard.name for guard in guards], stacked(members), list(map(len, members))
    )


def loaded(guard: FittedGuard, device: torch.device | str) -> LatentClassifiers:
    """The members of one guard. Raises ValueError naming a fault."""
    layers = range(max(1, sum(key.startswith("weight") for key in guard.tensors)))
    weights = [guard.tensor(f"weight{i}", "latents", 5).to(device) for i in layers]
    biases = [guard.tensor(f"bias{i}", "latents", 2).to(device) for i in layers]
    try:
        return LatentClassifiers(tuple(weights), tuple(biases))
    except ValueError as error:
        raise ValueError(f"guard {guard.name}: {error}") from error
