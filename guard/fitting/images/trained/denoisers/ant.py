"""ANT (arXiv 2504.12782): the concept is reversed at middle and late steps, early ones stay.

`‖ε_θ(z⁻, c) - [ε(∅) - η (ε(c) - ε(∅))]‖² + α₂ ‖ε_θ(z⁻, ∅) - ε(z⁻, ∅)‖²`
`+ α₁ (‖ε_θ(z⁺, c) - [ε(∅) + η (ε(c) - ε(∅))]‖² + α₂ ‖ε_θ(z⁺, ∅) - ε(z⁺, ∅)‖²)`, with z⁻ late and z⁺
early latents. The boundary between them is a noise level. The paper trains all weights under a mask
of their saliency; here they are low-rank factors, and every term has its gradient.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch

from guard.fitting.images.trained.denoisers.kinds import Kind
from guard.fitting.images.trained.denoisers.lesson import DenoiserLesson, nothing
from guard.fitting.images.trained.denoisers.trajectories import Trajectories, TrajectorySettings
from guard.fitting.images.trained.terms import led_away, mse
from guard.fitting.overlays.training import Losses, Objective
from steering.methods.contrastive import PRESETS


@dataclass(frozen=True)
class Ant:
    """`early` is α₁, `unconditional` α₂; `boundary` the noise level under which latents are late;
    `batch` of each in an update."""

    eta: float = 1.0
    early: float = 1.0
    unconditional: float = 0.5
    boundary: float = PRESETS["ant"].high or torch.inf
    batch: int = 2
    trajectories: TrajectorySettings = field(default_factory=TrajectorySettings)

    name: ClassVar[str] = "ant"
    kinds: ClassVar[tuple[Kind, ...]] = (
        *("cross-attention", "self-attention", "feed-forward"),
        *("projection", "convolution"),
    )

    def objective(self, lesson: DenoiserLesson) -> Objective:
        late, early = (0.0, self.boundary), (self.boundary, torch.inf)
        states = Trajectories(
            lesson, lesson.phrases, self.trajectories, edited=True, windows=[late, early]
        )

        def terms(update: int, window: tuple[float, float], eta: float) -> list[torch.Tensor]:
            prompts, at = states.draw(update, self.batch, *window)
            empty = nothing(self.batch)
            without, concept = lesson.bare(at, empty, prompts)
            unconditional, conditional = lesson.edited(at, empty, prompts)
            target = led_away(without, concept, eta)
            return [mse(conditional, target), self.unconditional * mse(unconditional, without)]

        def losses(update: int) -> Losses:
            erase, plain = terms(update, late, self.eta)
            stays, early_plain = terms(update, early, -self.eta)
            return Losses(erase, plain + self.early * (stays + early_plain))

        return Objective(losses, {"states": states})
