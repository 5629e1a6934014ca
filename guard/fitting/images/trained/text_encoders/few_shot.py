"""Few-shot unlearning (arXiv 2405.07288): textual inversion with the sign turned.

The text encoder is trained until images of the concept are denoised badly under the concept's
prompts. The published loss, `-MSE`, has no floor; here it is `relu(m - MSE)`, with m a multiple of
the bare model's error on the same views, and prompts without the concept keep their states.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from guard.evaluation.m_erasure.denoising import Views, bare
from guard.fitting.images.trained.noisy_images import ImageSettings
from guard.fitting.images.trained.text_encoders.blocks import Block
from guard.fitting.images.trained.text_encoders.fit import EncoderLesson
from guard.fitting.overlays.training import Losses, Objective
from steering.images.conditioning import Conditioning


@dataclass(frozen=True)
class FewShot:
    """`bound` is m in units of the bare model's error, `keep` the weight of `keeping` prompts,
    `batch` the images of an update and the prompts that are kept."""

    bound: float = 3.0
    keep: float = 1.0
    batch: int = 4
    images: ImageSettings = field(default_factory=lambda: ImageSettings(count=4))

    name: ClassVar[str] = "few-shot"

    def layers(self, blocks: Mapping[str, Sequence[Block]]) -> list[str]:
        """All feed-forward layers, and the last self-attention."""
        layers = [layer for of in blocks.values() for block in of for layer in block.feed_forward]
        return layers + [layer for of in blocks.values() for layer in of[-1].attention]

    def objective(self, lesson: EncoderLesson) -> Objective:
        images = lesson.images(lesson.phrases, self.images)
        predict = bare(lesson.family)

        def error(views: Views, text: Conditioning) -> Tensor:
            prediction = predict(views.inputs, views.timesteps, text)
            return (prediction - views.truth).square().flatten(1).mean(1)

        def losses(_update: int) -> Losses:
            _, views = images.views(self.batch, lesson.generator)
            prompts = lesson.sample(lesson.asking, self.batch)
            with torch.no_grad():
                bound = self.bound * error(views, lesson.bare(prompts))
            erased = ((bound - error(views, lesson.edited(prompts))) / bound).relu().mean()
            moved = lesson.moved(lesson.sample(lesson.keeping, self.batch))
            return Losses(erased, self.keep * moved)

        return Objective(losses)
