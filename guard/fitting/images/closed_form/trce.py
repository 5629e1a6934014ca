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
from guard.fitting.prompts.concept_prompts import COMPANIONS

SYNONYMS = 20
"""Phrases of the concept that are used, the first ones."""
TEMPLATES = (
    *("{0}", "a picture of {0}", "a drawing of {0}", "a photo of {0}", "an emoji of {0}"),
    *("an image of {0}", "{0} on the left", "{0} at the top", "{0} on a table", "{0} in a garden"),
    *("{0} on a white background", "{0} next to a tree", "a chair and {0}", "show me {0}"),
    "an illustration of {0}, high quality",
)
STYLE_TEMPLATES = tuple(f"{thing} {{0}}" for thing in COMPANIONS[: len(TEMPLATES)])
"""Where the concept is the ending of a prompt."""


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
        templates = STYLE_TEMPLATES if concept.ending else TEMPLATES
        return [
            (template.format(phrase), template.format(self.instead).strip())
            for phrase in concept.phrases.train[:SYNONYMS]
            for template in templates
        ]

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
