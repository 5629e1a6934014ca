"""Classifiers of finished latents: whether the image shows the concept, whatever the prompt.

Attackers can search for prompts that no classifier of embeddings recognises and that still generate
the concept. A finished image cannot be disguised that way, and the score does not depend on the
request's parameters (steps, guidance, negative prompt). The score is the logit of
p(concept), the mean of a guard's members (`classifiers/latents.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from classifiers.latents import LatentClassifiers, stacked
from steering.methods.fitted import FittedGuard, faults_of


class LatentClassifierGuards:
    """All classifiers of one model, stacked: `sizes[i]` members of guard i, in the order of the
    guards."""

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
        """As `sense`, and the votes behind the score, `[rows, columns, frames, places]`."""
        classifiers = self._classifiers
        members = [self._members[column] for column in columns]
        used = [member for of_guard in members for member in of_guard]
        if used != list(range(len(classifiers))):
            classifiers = classifiers.select(used)
        votes = classifiers.votes(latents.to(classifiers.weights[0]))
        sizes = torch.tensor([*map(len, members)], device=votes.device)
        owner = torch.arange(len(columns), device=votes.device).repeat_interleave(sizes)

        def mean(values: Tensor) -> Tensor:
            blank = values.new_zeros(len(values), len(columns), *values.shape[2:])
            index = owner.view(1, -1, *[1] * (values.ndim - 2)).expand_as(values)
            return blank.scatter_reduce(1, index, values, "mean", include_self=False)

        score = mean(votes.flatten(2).logsumexp(2))
        invalid = ~latents.isfinite().flatten(1).all(1, keepdim=True)
        return score.masked_fill(invalid, torch.nan), mean(votes)


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
    with faults_of(guard.name):
        return LatentClassifiers(tuple(weights), tuple(biases))
