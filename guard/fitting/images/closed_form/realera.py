"""RealEra (arXiv 2410.09140): a neighbourhood of the concept is erased, and what lies beyond it is
pinned.

States `e + η` whose cosine to the concept's state `e` is in a band, and `‖η‖` at most a radius, are
mapped to the replacement too; samples beyond the band keep their own mapping. `η` lies in the
principal subspace of the states of ordinary prompts: of isotropic η all that is left in the moments
is a ridge, since `E[(e+η)(e+η)ᵀ] = eeᵀ + σ²I`. The paper then trains a LoRA on the same pairs,
which is left out here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from guard.data.concept import Concept
from guard.fitting.images.closed_form.solver import Edit, Moments, solved
from guard.fitting.images.closed_form.states import ReplacedTokens, Tokens
from guard.fitting.images.closed_form.uce import Uce, kept_phrases


@dataclass(frozen=True)
class RealEra:
    """Settings: those of UCE's edit; `near` and `far` are the lowest cosines of neighbours, and of
    samples beyond them; `radius` is the longest `η` as a share of its state's length; `samples` of
    each kind are taken for each state, in `directions` principal ones (0: in all alike)."""

    edit: Uce
    near: float = 0.8
    far: float = 0.5
    radius: float = 1.0
    samples: int = 4
    directions: int = 64
    seed: int = 0

    method = "realera"

    def replaced(self, concept: Concept) -> list[tuple[str, str]]:
        return self.edit.replaced(concept)

    def kept(self, concept: Concept, prompts: Sequence[str]) -> list[str]:
        return list(dict.fromkeys([*kept_phrases(concept), *prompts]))

    def sums(self, width: int) -> RealEraSums:
        return RealEraSums(self, width)

    def settings(self) -> dict[str, Any]:
        names = ("near", "far", "radius", "samples", "directions")
        return {**self.edit.settings(), **{name: getattr(self, name) for name in names}}


class RealEraSums:
    """All states to be kept must come before those to be erased: these give the subspace."""

    def __init__(self, settings: RealEra, width: int) -> None:
        self._settings, self._moments = settings, Moments.zeros(width)
        self._total, self._count = torch.zeros(width, dtype=torch.float64), 0
        self._spread: Tensor | None = None
        self._generator = torch.Generator().manual_seed(settings.seed)

    def keep(self, tokens: Tokens) -> None:
        self._moments.keep(tokens.states)
        self._total += tokens.states.sum(0).cpu()
        self._count += len(tokens.states)

    def erase(self, tokens: ReplacedTokens) -> None:
        settings, moments = self._settings, self._moments
        states, stead = tokens.states.cpu(), tokens.stead.cpu()
        moments.erase(states, stead)
        if self._spread is None:
            mean = self._total / self._count
            covariance = moments.kept / self._count - torch.outer(mean, mean)
            self._spread = spread(covariance, settings.directions)
        states, stead = (part.repeat(settings.samples, 1) for part in (states, stead))
        # as much weight as the states themselves have, however many are sampled
        weights = torch.full((len(states),), 1.0 / settings.samples, dtype=torch.float64)
        neighbours, found = self._sampled(states, settings.near, 1.0)
        moments.erase(neighbours[found], stead[found], weights[found])
        beyond, found = self._sampled(states, settings.far, settings.near)
        moments.keep(beyond[found] * weights[found, None].sqrt())

    def edits(self, gram: Tensor) -> list[Edit]:
        edit = self._settings.edit
        return [solved(self._moments, keep=edit.keep, ridge=edit.ridge)]

    def _sampled(self, states: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
        assert self._spread is not None
        rows, directions = len(states), len(self._spread)
        normal = torch.randn(rows, directions, generator=self._generator, dtype=torch.float64)
        uniform = torch.rand(rows, generator=self._generator, dtype=torch.float64)
        cosines = low + (high - low) * uniform
        return at_cosines(states, normal @ self._spread, cosines, self._settings.radius)


def spread(covariance: Tensor, directions: int) -> Tensor:
    """The strongest principal directions of a covariance `[width, width]`, each as long as its
    standard deviation, `[directions, width]`; the unit directions of all for 0."""
    if not directions:
        return torch.eye(len(covariance)).to(covariance)
    values, vectors = torch.linalg.eigh(covariance)
    strongest = values.argsort(descending=True)[:directions]
    lengths = values[strongest].clamp(min=0.0).sqrt()
    scaled: Tensor = vectors[:, strongest] * lengths
    return scaled.T


def at_cosines(
    states: Tensor, directions: Tensor, cosines: Tensor, radius: float
) -> tuple[Tensor, Tensor]:
    """States `e + t d [n, width]` whose cosine to `e` is the one asked for, and which of them there
    are, `[n]`: none where `d` leads nowhere so far from `e`, or `t ‖d‖` would be over `radius ‖e‖`.

    `e`, `e + t d` and the origin form a triangle with the angle θ of that cosine at the origin, and
    `t ‖d‖ = ‖e‖ sin θ / sin(φ - θ)`, φ the angle between `e` and `d`.
    """
    lengths = states.norm(dim=1)
    unit = directions / directions.norm(dim=1, keepdim=True).clamp(min=1e-12)
    between = ((states * unit).sum(1) / lengths.clamp(min=1e-12)).clamp(-1.0, 1.0).arccos()
    angle = cosines.clamp(-1.0, 1.0).arccos()
    reach = lengths * angle.sin() / (between - angle).sin().clamp(min=1e-12)
    found = (between > angle) & (reach <= radius * lengths)
    return states + reach[:, None] * unit, found
