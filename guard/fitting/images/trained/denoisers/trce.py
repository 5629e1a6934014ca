"""TRCE's second stage (arXiv 2503.07389): early predictions are pushed to the prompt's safe twin.

With `p = ε(c_s) + w (ε(c_s) - ε(∅))` and `n` the same of the prompt `c_m`, the mean over `ε_θ(c_m)`
and `ε_θ(∅)` of `relu(‖· - p‖² - ‖· - n‖² + margin)` on latents of the bare model at high noise,
plus `keep ‖ε_θ(∅) - ε(∅)‖²` on latents without a prompt. In the paper ε is the model after its
first stage; here it is the bare one, and the first stage is a guard of its own (`guard fit trce`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from guard.fitting.images.trained.denoisers.kinds import Kind
from guard.fitting.images.trained.denoisers.lesson import DenoiserLesson, nothing
from guard.fitting.images.trained.denoisers.trajectories import Trajectories, TrajectorySettings
from guard.fitting.images.trained.terms import led_away, mse
from guard.fitting.overlays.training import Losses, Objective
from guard.fitting.prompts.twins import twins
from steering.methods.contrastive import PRESETS


@dataclass(frozen=True)
class TrceStage2:
    """`instead` is in the twins the concept's place, `weight` w; latents are those from the noise
    level `low` on, `batch` of them in an update."""

    instead: str
    weight: float = 15.0
    margin: float = 0.01
    keep: float = 100.0
    low: float = PRESETS["trce"].low or 0.0
    batch: int = 4
    trajectories: TrajectorySettings = field(default_factory=TrajectorySettings)

    name: ClassVar[str] = "trce-stage2"
    kinds: ClassVar[tuple[Kind, ...]] = ("self-attention", "queries")

    def objective(self, lesson: DenoiserLesson) -> Objective:
        twin = dict(twins(lesson.concept, self.instead))
        states, plain = (
            Trajectories(lesson, prompts, self.trajectories, edited=False, windows=windows)
            for prompts, windows in ((list(twin), [(self.low, torch.inf)]), ([""], []))
        )

        def losses(update: int) -> Losses:
            prompts, at = states.draw(update, self.batch, low=self.low)
            empty = nothing(self.batch)
            safe, harmful, without = lesson.bare(
                at, [twin[prompt] for prompt in prompts], prompts, empty
            )
            near, far = (led_away(side, without, self.weight) for side in (safe, harmful))
            pushed = torch.stack(
                [
                    (_distance(predicted, near) - _distance(predicted, far) + self.margin).relu()
                    for predicted in lesson.edited(at, prompts, empty)
                ]
            )
            _, free = plain.draw(update, self.batch)
            (stays,), (moved,) = lesson.bare(free, empty), lesson.edited(free, empty)
            return Losses(pushed.mean(), self.keep * mse(moved, stays))

        return Objective(losses, {"states": states, "plain": plain})


def _distance(left: Tensor, right: Tensor) -> Tensor:
    """The mean squared difference of each row."""
    return (left - right).square().flatten(1).mean(1)
