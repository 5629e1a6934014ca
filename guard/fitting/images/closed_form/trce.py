"""TRCE's first stage (arXiv 2503.07389): the end mark of a prompt becomes that of its safe twin.

    W' = (Σ W e_s e_mᵀ + η Σ W e_k e_kᵀ) (Σ e_m e_mᵀ + η Σ e_k e_kᵀ)⁻¹

with `e_m` the state of the first end mark of a prompt with the concept, `e_s` that of its twin, and
`e_k` the states of ordinary prompts; sums are divided by the number of prompts. The paper has no
ridge; without one the system is singular where the states do not span their width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from guard.data.concept import Concept
from guard.fitting.images.closed_form.solver import Edit, Moments, solved
from guard.fitting.images.closed_form.states import ReplacedTokens, Tokens
from guard.fitting.prompts.twins import twins


@dataclass(frozen=True)
class Trce:
    """Settings: `instead` is in the twins the concept's place, `keep` is η, `token_weight` that
    of the tokens before the end mark (0 as published)."""

    instead: str
    keep: float = 0.01
    ridge: float = 1e-3
    token_weight: float = 0.0

    method = "trce"

    def replaced(self, concept: Concept) -> list[tuple[str, str]]:
        return twins(concept, self.instead)

    def kept(self, concept: Concept, prompts: Sequence[str]) -> list[str]:
        return list(prompts)

    def sums(self, width: int) -> TrceSums:
        return TrceSums(self, width)

    def settings(self) -> dict[str, Any]:
        names = ("instead", "keep", "ridge", "token_weight")
        return {name: getattr(self, name) for name in names}


class TrceSums:
    def __init__(self, settings: Trce, width: int) -> None:
        self._settings, self._moments = settings, Moments.zeros(width)
        self._replaced, self._kept = 0, 0

    def keep(self, tokens: Tokens) -> None:
        self._moments.keep(tokens.states)
        self._kept += int(tokens.last.sum())

    def erase(self, tokens: ReplacedTokens) -> None:
        weights = tokens.last.double().clamp(min=self._settings.token_weight)
        self._moments.erase(tokens.states, tokens.stead, weights)
        self._replaced += int(tokens.last.sum())

    def edits(self, gram: Tensor) -> list[Edit]:
        sums, settings = self._moments, self._settings
        replaced, kept = max(self._replaced, 1), max(self._kept, 1)
        means = Moments(sums.erased / replaced, sums.kept / kept, sums.moved / replaced)
        return [solved(means, keep=settings.keep, ridge=settings.ridge)]
