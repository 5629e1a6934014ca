"""Several concepts in one solve, as UCE's paper erases them (arXiv 2308.14761).

Edits that were solved alone add up on a row that carries several of them, and each knows nothing of
what the others keep. Here the sums of all concepts go into one system: one edit, one overlay, as
published without a gate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from guard.data.concept import Concept
from guard.errors import DataError
from guard.fitting.images.closed_form.fit import ClosedForm, Sums


@dataclass(frozen=True)
class Joint:
    """An eraser for each concept, all with the same settings but for what replaces it.

    A phrase that is erased for one concept is not kept for another one.
    """

    parts: Sequence[tuple[Concept, ClosedForm]]

    @property
    def method(self) -> str:
        return self._first.method

    @property
    def _first(self) -> ClosedForm:
        return self.parts[0][1]

    def replaced(self, concept: Concept) -> list[tuple[str, str]]:
        """All phrases of all concepts. Raises DataError for one that two of them replace by
        something else."""
        steads: dict[str, str] = {}
        for each, eraser in self.parts:
            for phrase, stead in eraser.replaced(each):
                if steads.setdefault(phrase, stead) != stead:
                    raise DataError(
                        f"{phrase!r} is a phrase of two concepts, to be replaced by "
                        f"{steads[phrase]!r} and by {stead!r}: take it out of one of the files"
                    )
        return [*steads.items()]

    def kept(self, concept: Concept, prompts: Sequence[str]) -> list[str]:
        erased = {phrase for phrase, _ in self.replaced(concept)}
        kept = [text for each, eraser in self.parts for text in eraser.kept(each, prompts)]
        return [text for text in dict.fromkeys(kept) if text not in erased]

    def sums(self, width: int) -> Sums:
        return self._first.sums(width)

    def settings(self) -> dict[str, Any]:
        """Those of the erasers; `instead` has what replaces each concept, by its name."""
        steads = {each.name: eraser.settings()["instead"] for each, eraser in self.parts}
        return self._first.settings() | {"instead": steads}
