"""RECE (arXiv 2407.12383): find the states that still bring the concept back, erase them too,
repeat.

After an edit `W'_l` of the layers `W_l`, the state that brings `c` back is (the paper's equation 6)

    c' = argmin Σ_l ‖W'_l c' - W_l c‖² + λ ‖c'‖² = (λI + Σ W'ᵀW')⁻¹ (Σ W'ᵀW) c

and one round of UCE on the edited layers maps it to the replacement. Every edit is a factor
`I + X M⁻¹` on the right, the same for all layers of a group: with `T` their product and
`G = Σ W_lᵀ W_l` the derived state is `(λI + TᵀGT)⁻¹ TᵀG c`, linear in `c`, so that a round takes
the moments of the round before it and a few solves of the states' width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from guard.data.concept import Concept
from guard.fitting.images.closed_form.solver import Edit, Moments, solved
from guard.fitting.images.closed_form.uce import Uce, UceSums


@dataclass(frozen=True)
class Rece:
    """Settings: those of UCE's edit, which each round repeats, `derive` the λ of the derived
    states, and the number of rounds after the first edit."""

    edit: Uce
    derive: float = 0.1
    rounds: int = 3

    method = "rece"

    def replaced(self, concept: Concept) -> list[tuple[str, str]]:
        return self.edit.replaced(concept)

    def kept(self, concept: Concept, prompts: Sequence[str]) -> list[str]:
        return self.edit.kept(concept, prompts)

    def sums(self, width: int) -> ReceSums:
        return ReceSums(self, width)

    def settings(self) -> dict[str, Any]:
        return {**self.edit.settings(), "derive": self.derive}


class ReceSums(UceSums):
    """The sums of UCE; one edit for each round."""

    def __init__(self, settings: Rece, width: int) -> None:
        super().__init__(settings.edit, width)
        self._derive, self._rounds = settings.derive, settings.rounds

    def edits(self, gram: Tensor) -> list[Edit]:
        moments, edit = self._moments, self._settings
        (first,) = super().edits(gram)
        unit = torch.eye(len(gram)).to(gram)
        factor, metric = unit + first.change, first.metric
        to_stead = moments.moved + moments.erased  # Σ c*_i c_iᵀ
        edits = []
        for _ in range(self._rounds):
            derived = derivation(gram, factor, self._derive)
            erased = derived @ moments.erased @ derived.T
            again = Moments(erased, moments.kept, to_stead @ derived.T - erased)
            step = solved(again, keep=edit.keep, ridge=edit.ridge)
            factor = factor @ (unit + step.change)
            metric = metric + erased
            edits.append(Edit(factor - unit, metric))
        return edits


def derivation(gram: Tensor, factor: Tensor, ridge: float) -> Tensor:
    """`(λI + TᵀGT)⁻¹ TᵀG [in, in]`: from a state to the one that brings it back after an edit.

    `gram` is G, `factor` T, both `[in, in]`; `ridge` is λ.
    """
    read_back = factor.T @ gram
    unit = torch.eye(len(gram)).to(gram)
    derived: Tensor = torch.linalg.solve(ridge * unit + read_back @ factor, read_back)
    return derived
