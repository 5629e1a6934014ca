"""Classifiers of finished latents: does the picture show the concept, whatever the prompt said.

What a prompt says does not decide alone what is drawn: prompts can be searched for that no
classifier of embeddings knows. A finished picture cannot be disguised that way. What the request
asked for (steps, guidance, negative prompt) has no say in it. The score is the logit of
p(concept), the mean of a guard's members (`classifiers/latents.py`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from classifiers.latents import LatentClassifiers, stacked
from steering.methods.embedding import EmbeddingGuard


class LatentScreen:
    """All classifiers of one model, stacked: classifier i is a member of guard `owner[i]`."""

    def __init__(
        self, names: Sequence[str], classifiers: LatentClassifiers, owner: Sequence[int]
    ) -> None:
        self.names: Sequence[str] = tuple(names)
        self.channels = classifiers.channels
        self._classifiers, self._owner = classifiers, tuple(owner)

    def sense(self, latents: Tensor, columns: Sequence[int]) -> Tensor:
        """The logit of p(concept) `[rows, columns]`, differentiable; NaN for a row not finite."""
        used = [member for member, guard in enumerate(self._owner) if guard in columns]
        among = self._classifiers
        if len(used) < len(among):
            among = among.select(used)
        said = among(latents.to(among.weights[0]))
        place = {guard: at for at, guard in enumerate(columns)}
        owner = torch.tensor([place[self._owner[member]] for member in used], device=said.device)
        blank = said.new_zeros(len(said), len(columns))
        index = owner.expand(len(said), -1)
        score = blank.scatter_reduce(1, index, said, "mean", include_self=False)
        return score.masked_fill(~latents.isfinite().flatten(1).all(1, keepdim=True), torch.nan)


def stack(guards: Sequence[EmbeddingGuard], device: torch.device | str = "cpu") -> LatentScreen:
    """From artifacts, as `guard fit latents` writes them. Raises ValueError naming a fault."""
    members = [_loaded(guard, device) for guard in guards]
    owner = [index for index, own in enumerate(members) for _ in range(len(own))]
    return LatentScreen([guard.name for guard in guards], stacked(members), owner)


def _loaded(guard: EmbeddingGuard, device: torch.device | str) -> LatentClassifiers:
    layers = range(max(1, sum(key.startswith("weight") for key in guard.tensors)))
    weights = [guard.tensor(f"weight{i}", "latents", 5).to(device) for i in layers]
    biases = [guard.tensor(f"bias{i}", "latents", 2).to(device) for i in layers]
    try:
        return LatentClassifiers(tuple(weights), tuple(biases))
    except ValueError as error:
        raise ValueError(f"guard {guard.name}: {error}") from error
