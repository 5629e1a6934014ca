"""Probes: does the finished picture show the concept, told by the denoiser's own hidden states.

What a prompt says does not decide alone what is drawn: prompts can be searched for that no
classifier of embeddings knows. A finished picture cannot be disguised that way. The denoiser looks
at it once more, under the empty prompt and at an early timestep, as far as its middle; linear
probes (`classifiers/probes.py`) read its states there. What the request asked for (steps, guidance,
negative prompt) has no say in it. The score is the logit of p(concept), the mean of a guard's
members.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from classifiers.probes import Probes
from steering.methods.embedding import EmbeddingGuard


class ProbeScreen:
    """All probes of one model, stacked: probe i belongs to guard `owner[i]`."""

    def __init__(self, names: Sequence[str], probes: Probes, owner: Tensor) -> None:
        self.names: Sequence[str] = tuple(names)
        self._probes, self._owner = probes, owner

    def sense(self, states: Tensor) -> Tensor:
        """The logit of p(concept) `[rows, guards]`, differentiable; NaN for a row not finite."""
        said = self._probes(states.float())
        blank = said.new_zeros(len(said), len(self.names))
        index = self._owner.expand(len(said), -1)
        score = blank.scatter_reduce(1, index, said, "mean", include_self=False)
        return score.masked_fill(~states.isfinite().flatten(1).all(1, keepdim=True), torch.nan)


def stack(guards: Sequence[EmbeddingGuard], device: torch.device | str = "cpu") -> ProbeScreen:
    """From artifacts, as `guard fit probe` writes them. Raises ValueError naming a fault."""
    weights = [guard.tensor("weight", "picture", 2) for guard in guards]
    biases = [guard.tensor("bias", "picture", 1) for guard in guards]
    for guard, weight, bias in zip(guards, weights, biases, strict=True):
        if len(weight) != len(bias):
            raise ValueError(f"guard {guard.name}: weight and bias are of different numbers")
    if len({weight.shape[1] for weight in weights}) > 1:
        raise ValueError("probes of different widths cannot be stacked")
    owner = [index for index, weight in enumerate(weights) for _ in range(len(weight))]
    return ProbeScreen(
        [guard.name for guard in guards],
        Probes(torch.cat(weights).to(device), torch.cat(biases).to(device)),
        torch.tensor(owner, device=device),
    )
