"""Guidance by a contrastive pair, at the guidance seam, without training.

A guard predicts again under the conditioning of its concept, `S`, and takes from the guidance

    term = weight · strength · (S - R)

where `R` is the unconditional prediction, or a third one under the conditioning of a counterpart.
It acts while the noise level lies in its window. Three published erasers, which change weights to
the same end, are presets of it: ANT (arXiv 2504.12782) reverses the concept in the middle and late
steps, `(1 + η)(S - u)`; TRCE's second stage (arXiv 2503.07389) pushes the early ones from the
concept's prediction to its safe twin's; All but One (arXiv 2312.12807) leaves the unconditional
prediction alone and replaces the concept's part by that of an alternative, `S - A`.

As published they act on every image. Where a gate is asked for, a linear score of the prompt
decides (`prompt_score.py`), and the rows in which it is silent keep their bits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from steering.images.conditioning import Conditioning
from steering.images.guidance import Predictions
from steering.methods.fitted import FittedGuard
from steering.methods.prompt_score import PromptGate
from steering.methods.safe_guidance import ConceptGuidance, beside, stacked_concepts


@dataclass(frozen=True)
class Contrast:
    """What a published eraser subtracts: its weight, the window of noise levels (noise over
    signal; None for no bound), and whether it has a counterpart."""

    weight: float
    low: float | None
    high: float | None
    paired: bool


PRESETS: Mapping[str, Contrast] = {
    "ant": Contrast(2.0, None, 6.2, paired=False),
    "trce": Contrast(1.0, 1.5, None, paired=True),
    "all-but-one": Contrast(1.0, None, None, paired=True),
}
"""ANT: η 1, from step 7 of 50; TRCE: up to step 25 of 50: both steps as the noise level that the
papers' model, Stable Diffusion 1.4, has there."""


class ContrastiveGuidance(ConceptGuidance):
    """All such guards of one model, stacked; all of them have a counterpart, or none has."""

    def __init__(
        self,
        names: Sequence[str],
        conditions: Conditioning,
        gate: PromptGate,
        weight: Tensor,
        windows: Sequence[tuple[float, float]],
    ) -> None:
        super().__init__(names, conditions, gate)
        self.per_guard = conditions.rows // len(names)
        self.windows = tuple(windows)
        self._weight = weight

    def term(self, at: Predictions) -> tuple[Tensor, Tensor]:
        """See `GuidanceGuards.term`; without memory."""
        reference = at.extra[:, 1] if self.per_guard > 1 else at.unconditional
        away = at.concept.float() - reference.float()
        return beside(self._weight[at.guard] * at.strength, away) * away, at.memory


def stack(guards: Sequence[FittedGuard], device: torch.device | str = "cpu") -> ContrastiveGuidance:
    """From artifacts, as `guard fit contrastive` writes them. Raises ValueError naming a fault, and
    for guards with and without a counterpart."""
    paired = {guard.flag("paired") for guard in guards}
    if len(paired) > 1:
        raise ValueError("guards with a counterpart cannot be stacked with those without one")
    kinds = [("concept", "mask"), ("counterpart", "counterpart_mask")][: 1 + paired.pop()]
    names, conditions, gate = stacked_concepts(guards, device, kinds)
    weight = torch.tensor([guard.number("weight") for guard in guards], device=device)
    return ContrastiveGuidance(names, conditions, gate, weight, [_window(g) for g in guards])


def _window(guard: FittedGuard) -> tuple[float, float]:
    low, high = guard.optional_number("sigma_low"), guard.optional_number("sigma_high")
    window = (0.0 if low is None else low, math.inf if high is None else high)
    if window[0] > window[1]:
        raise ValueError(f"guard {guard.name}: sigma_low is over sigma_high: no step is between")
    return window
