"""DoCo (arXiv 2405.15304): the changed model's images of the concept pass a discriminator as the
bare model's images of an anchor.

On noisy views of the model's own images of anchor prompts, `x̂₀` is the clean latent that one
prediction gives. The discriminator learns bare model and anchor prompt → 0, changed model and
target prompt → 1; the factors learn `BCE(D(x̂₀ of the target), 0)`. What is kept is the denoising
of the anchor's images under their own prompts. The erasing gradient is projected as all others are
(`guard/fitting/overlays/training.py`): the released code takes its length from another vector.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from guard.errors import ModelError
from guard.evaluation.m_erasure.denoising import Views
from guard.fitting.images.trained.denoisers.discriminator import Discriminator
from guard.fitting.images.trained.denoisers.kinds import Kind
from guard.fitting.images.trained.denoisers.lesson import DenoiserLesson
from guard.fitting.images.trained.noisy_images import ImageSettings
from guard.fitting.images.trained.terms import mse
from guard.fitting.overlays.training import Losses, Objective
from guard.fitting.prompts.twins import twins


@dataclass(frozen=True)
class DoCo:
    """`anchor` is in the anchor prompts the concept's place; `keep` weighs the anchor's images.
    The discriminator has `warmup` updates of Adam at `discriminator_rate` before the first of the
    factors, and one with each of them. `batch` views in an update."""

    anchor: str
    keep: float = 1.0
    warmup: int = 30
    discriminator_rate: float = 5e-4
    batch: int = 4
    images: ImageSettings = field(default_factory=lambda: ImageSettings(count=16))

    name: ClassVar[str] = "doco"
    kinds: ClassVar[tuple[Kind, ...]] = ("cross-attention",)

    def objective(self, lesson: DenoiserLesson) -> Objective:
        family = lesson.family
        if family.frames is not None:
            raise ModelError("DoCo's discriminator reads images, and this model makes videos")
        # each anchor prompt stands for several targets
        targets: dict[str, list[str]] = {}
        for target, anchor in twins(lesson.concept, self.anchor):
            targets.setdefault(anchor, []).append(target)
        images = lesson.images(list(targets), self.images)
        discriminator = Discriminator(
            family.channels, self.discriminator_rate, family.device, lesson.generator
        )

        def drawn() -> tuple[list[str], list[str], Views]:
            anchors, views = images.views(self.batch, lesson.generator)
            return anchors, [lesson.sample(targets[a], 1)[0] for a in anchors], views

        def clean(views: Views, prediction: Tensor) -> Tensor:
            return family.unpacked(views.estimate(prediction))

        def losses(update: int) -> Losses:
            for _ in range(self.warmup if update == 0 else 0):
                anchors, asking, views = drawn()
                both = lesson.bare(views, anchors, asking)
                discriminator.learn(*(clean(views, prediction) for prediction in both))
            anchors, asking, views = drawn()
            (bare,) = lesson.bare(views, anchors)
            stays, changed = lesson.edited(views, anchors, asking)
            target = clean(views, changed)
            discriminator.learn(clean(views, bare), target)
            return Losses(discriminator.passing(target), self.keep * mse(stays, views.truth))

        return Objective(losses, {"discriminator": discriminator})
