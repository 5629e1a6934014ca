"""Co-Erasing (arXiv 2505.11131): first the concept's words are erased, then words and pictures.

`‖ε_θ(z, c) - (ε(∅) - η (ε(c) - ε(∅)))‖²`, in the first half of the updates with c the prompt, in
the second with `c = [prompt, picture tokens]`. The tokens are refined by the prompt's own states:
what they have of background and style is not in those.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from guard.fitting.images.trained.denoisers.kinds import Kind
from guard.fitting.images.trained.denoisers.lesson import DenoiserLesson, nothing
from guard.fitting.images.trained.denoisers.picture_tokens import (
    PictureSettings,
    learned_tokens,
)
from guard.fitting.images.trained.denoisers.trajectories import Trajectories, TrajectorySettings
from guard.fitting.images.trained.terms import led_away, mse
from guard.fitting.overlays.training import Losses, Objective


@dataclass(frozen=True)
class CoErasing:
    """`words` is the share of the updates that erase words alone, `batch` the latents of each."""

    eta: float = 1.0
    words: float = 0.5
    batch: int = 4
    pictures: PictureSettings = field(default_factory=PictureSettings)
    trajectories: TrajectorySettings = field(default_factory=TrajectorySettings)

    name: ClassVar[str] = "co-erasing"
    kinds: ClassVar[tuple[Kind, ...]] = (
        *("self-attention", "feed-forward"),
        *("projection", "convolution"),
    )

    def objective(self, lesson: DenoiserLesson) -> Objective:
        states = Trajectories(lesson, lesson.phrases, self.trajectories, edited=True)
        tokens = learned_tokens(lesson, lesson.phrases, self.pictures)
        begun = self.words * lesson.training.steps

        def losses(update: int) -> Losses:
            prompts, at = states.draw(update, self.batch)
            text, empty = lesson.encode(prompts), lesson.encode(nothing(self.batch))
            if update >= begun:
                text = tokens.beside(text)
            (without,), (concept,) = lesson.bare(at, empty), lesson.bare(at, text)
            (erased,) = lesson.edited(at, text)
            return Losses(mse(erased, led_away(without, concept, self.eta)))

        return Objective(losses, {"states": states})
