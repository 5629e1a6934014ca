"""Guards that are easy to follow, for any family: they look for a word of the tiny vocabulary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from steering.hidden.rows import RowGuard
from steering.images.conditioning import Conditioning
from steering.images.embedding import Refinement


class Push:
    """Scores a row by the length of its states; acts by adding the guard's number to them all."""

    def __init__(self, *names: str) -> None:
        self.names: Sequence[str] = names
        self.seen: list[Conditioning] = []

    def sense(self, text: Conditioning) -> Tensor:
        self.seen.append(text)
        score = sum(
            (state.float().square().sum(-1) * text.masks[name]).sum(1)
            for name, state in text.states.items()
        )
        assert isinstance(score, Tensor)
        return score[:, None].expand(-1, len(self.names))

    def act(
        self, text: Conditioning, due: Tensor, threshold: Tensor, strength: Tensor
    ) -> Refinement:
        more = (due * strength).sum(1)[:, None, None]
        pushed = text.with_states({name: s + more for name, s in text.states.items()})
        return Refinement(pushed, due.any(1).long(), torch.full_like(strength, torch.nan))


class Gaze:
    """Scores a finished image by the mean of its first channel, in -1..1; guard i adds i."""

    channels = 4

    def __init__(self, *names: str) -> None:
        self.names: Sequence[str] = names
        self.seen: list[Tensor] = []

    def sense(self, latents: Tensor, columns: Sequence[int]) -> Tensor:
        self.seen.append(latents)
        mean = latents[:, 0].double().flatten(1).mean(1, keepdim=True)
        return mean / (1 + mean.abs()) + torch.tensor(columns)


def carried(name: str, *, fires: bool = True, strength: float = 1.0, acts: bool = True) -> RowGuard:
    return RowGuard(name, -1.0 if fires else 1e9, strength, acts)


def same(first: Conditioning, second: Conditioning) -> bool:
    """Bit for bit, masks too."""

    def equal(mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> bool:
        return mine.keys() == theirs.keys() and all(
            torch.equal(tensor, theirs[name]) for name, tensor in mine.items()
        )

    return equal(first.states, second.states) and equal(first.masks, second.masks)
