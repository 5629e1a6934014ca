"""Guards for any family whose scores and actions are easy to compute by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from steering.engines.diffusion.families import Family
from steering.hidden.rows import RowGuard
from steering.images.conditioning import Conditioning
from steering.images.embedding import Refinement
from steering.images.guidance import Predictions


class ShiftGuards:
    """Scores a row by the squared length of its states; acts by adding its strength to them."""

    def __init__(self, *names: str) -> None:
        self.names: Sequence[str] = names
        self.texts: list[Conditioning] = []

    def sense(self, text: Conditioning) -> Tensor:
        self.texts.append(text)
        score = sum(
            (state.float().square().sum(-1) * text.masks[name]).sum(1)
            for name, state in text.states.items()
        )
        assert isinstance(score, Tensor)
        return score[:, None].expand(-1, len(self.names))

    def act(
        self, text: Conditioning, due: Tensor, threshold: Tensor, strength: Tensor
    ) -> Refinement:
        shift = (due * strength).sum(1)[:, None, None]
        pushed = text.with_states({name: s + shift for name, s in text.states.items()})
        return Refinement(pushed, due.any(1).long(), torch.full_like(strength, torch.nan))


class MeanGuards:
    """Scores a finished image by the mean of its first channel, in -1..1; guard i adds i."""

    channels = 4

    def __init__(self, *names: str) -> None:
        self.names: Sequence[str] = names
        self.latents: list[Tensor] = []

    def sense(self, latents: Tensor, columns: Sequence[int]) -> Tensor:
        self.latents.append(latents)
        mean = latents[:, 0].double().flatten(1).mean(1, keepdim=True)
        return mean / (1 + mean.abs()) + torch.tensor(columns)


class RepelGuards:
    """A guidance term away from the concept by the guard's strength, with a share of its memory."""

    def __init__(self, family: Family, *concepts: str) -> None:
        self.names: Sequence[str] = concepts
        with torch.no_grad():
            self.per_guard = 1
            self.conditions: Conditioning | None = family.encode(list(concepts))

    def sense(self, text: Conditioning) -> Tensor:
        return torch.ones(text.rows, len(self.names))

    def act(
        self, text: Conditioning, due: Tensor, threshold: Tensor, strength: Tensor
    ) -> Refinement:
        nothing = torch.zeros(text.rows, dtype=torch.long)
        return Refinement(text, nothing, torch.full_like(strength, torch.nan))

    def term(self, at: Predictions) -> tuple[Tensor, Tensor]:
        strength = at.strength.view(-1, *[1] * (at.concept.ndim - 1))
        term = strength * (at.concept - at.unconditional) + 0.1 * at.memory
        return term, term


def carried(name: str, *, fires: bool = True, strength: float = 1.0, acts: bool = True) -> RowGuard:
    return RowGuard(name, -1.0 if fires else 1e9, strength, acts)


def same(first: Conditioning, second: Conditioning) -> bool:
    """Bit for bit, masks too."""

    def equal(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> bool:
        return tensors.keys() == expected.keys() and all(
            torch.equal(tensor, expected[name]) for name, tensor in tensors.items()
        )

    return equal(first.states, second.states) and equal(first.masks, second.masks)
