"""UCE (arXiv 2308.14761): every token of the concept's phrases becomes its replacement's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from guard.data.concept import Concept
from guard.fitting.images.closed_form.solver import Edit, Moments, solved
from guard.fitting.images.closed_form.states import ReplacedTokens, Tokens
from guard.fitting.prompts.concept_prompts import COMPANIONS


@dataclass(frozen=True)
class Uce:
    """Settings of the edit: `instead` replaces the concept ("" for nothing); `keep` is λ1, `ridge`
    λ2."""

    instead: str = ""
    keep: float = 0.1
    ridge: float = 0.1

    method = "uce"

    def replaced(self, concept: Concept) -> list[tuple[str, str]]:
        return [(phrase, self.instead) for phrase in concept.phrases.train]

    def kept(self, concept: Concept, prompts: Sequence[str]) -> list[str]:
        return kept_phrases(concept)

    def sums(self, width: int) -> UceSums:
        return UceSums(self, width)

    def settings(self) -> dict[str, Any]:
        return {"instead": self.instead, "keep": self.keep, "ridge": self.ridge}


class UceSums:
    def __init__(self, settings: Uce, width: int) -> None:
        self._settings, self._moments = settings, Moments.zeros(width)

    def keep(self, tokens: Tokens) -> None:
        self._moments.keep(tokens.states)

    def erase(self, tokens: ReplacedTokens) -> None:
        self._moments.erase(tokens.states, tokens.stead)

    def edits(self, gram: Tensor) -> list[Edit]:
        return [solved(self._moments, keep=self._settings.keep, ridge=self._settings.ridge)]


def kept_phrases(concept: Concept) -> list[str]:
    """What must stay: everything that a concept file lists beside the concept, some other things,
    and the empty prompt."""
    known = ("", *concept.replacements, *concept.hard_negatives, *concept.companions, *COMPANIONS)
    return list(dict.fromkeys(known))
