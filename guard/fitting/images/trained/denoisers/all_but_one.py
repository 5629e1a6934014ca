"""All but One (arXiv 2312.12807): the guidance of the concept becomes that of an alternative, and
the unconditional prediction stays.

`‖(ε_θ(c) - ε_θ(∅)) - (ε(a) - ε(∅))‖² + λ ‖ε_θ(∅) - ε(∅)‖²`, with a the prompt with the alternative
in the concept's place. There is no code, and the abstract alone is what the loss was read from: λ,
layers and steps could not be found.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from guard.fitting.images.trained.denoisers.kinds import Kind
from guard.fitting.images.trained.denoisers.lesson import DenoiserLesson, nothing
from guard.fitting.images.trained.denoisers.trajectories import Trajectories, TrajectorySettings
from guard.fitting.images.trained.terms import mse
from guard.fitting.overlays.training import Losses, Objective
from guard.fitting.prompts.twins import twins


@dataclass(frozen=True)
class AllButOne:
    """`instead` is the alternative, `keep` is λ, `batch` the latents of an update."""

    instead: str
    keep: float = 1.0
    batch: int = 4
    trajectories: TrajectorySettings = field(default_factory=TrajectorySettings)

    name: ClassVar[str] = "all-but-one"
    kinds: ClassVar[tuple[Kind, ...]] = ("cross-attention",)

    def objective(self, lesson: DenoiserLesson) -> Objective:
        twin = dict(twins(lesson.concept, self.instead))
        states = Trajectories(lesson, list(twin), self.trajectories, edited=True)

        def losses(update: int) -> Losses:
            prompts, at = states.draw(update, self.batch)
            empty = nothing(self.batch)
            other, plain = lesson.bare(at, [twin[prompt] for prompt in prompts], empty)
            concept, unconditional = lesson.edited(at, prompts, empty)
            erase = mse(concept - unconditional, other - plain)
            return Losses(erase, self.keep * mse(unconditional, plain))

        return Objective(losses, {"states": states})
