"""AdvUnlearn (arXiv 2405.15234): adversarial training of the text encoder, with a term that keeps.

Defence: `‖ε_θ(z, c*) - (ε₀(∅) - η (ε₀(c) - ε₀(∅)))‖² + w ‖ε_θ(z_r, c_r) - ε₀(z_r, c_r)‖²`, with
`c*` the prompt behind an attacker's word. Attack: that word's embedding, learned anew for each
update, so that `ε_θ(z, c*)` is what the bare model predicts under c.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from guard.errors import ModelError
from guard.evaluation.m_erasure.denoising import Predict, Views, bare
from guard.fitting.images.trained.noisy_images import ImageSettings
from guard.fitting.images.trained.terms import led_away, mse
from guard.fitting.images.trained.text_encoders.blocks import Block
from guard.fitting.images.trained.text_encoders.fit import EncoderLesson
from guard.fitting.overlays.training import Losses, Objective
from steering.images.conditioning import Conditioning

WORD = "<word>"


@dataclass(frozen=True)
class AdvUnlearn:
    """`eta` is η and `keep` w. From the share `warmup` of the updates on, every `every`-th is
    against a word learned in `attack_steps` of Adam at `attack_rate`, in units of the embeddings'
    root mean square; the updates between meet the last word. `batch` images in an update."""

    eta: float = 1.0
    keep: float = 1.0
    warmup: float = 0.2
    every: int = 1
    attack_steps: int = 30
    attack_rate: float = 0.1
    batch: int = 4
    images: ImageSettings = field(default_factory=lambda: ImageSettings(count=32))

    name: ClassVar[str] = "advunlearn"

    def layers(self, blocks: Mapping[str, Sequence[Block]]) -> list[str]:
        """All linear layers of the blocks."""
        all_blocks = [block for of in blocks.values() for block in of]
        return [layer for b in all_blocks for layer in (*b.attention, *b.feed_forward)]

    def objective(self, lesson: EncoderLesson) -> Objective:
        attacker = _Attacker(self, lesson)
        predict = bare(lesson.family)
        asking = lesson.images(lesson.asking, self.images)
        keeping = lesson.images(lesson.keeping, self.images)

        def losses(update: int) -> Losses:
            prompts, views = asking.views(self.batch, lesson.generator)
            with torch.no_grad():
                nothing, concept = (
                    predict(views.inputs, views.timesteps, lesson.bare(texts))
                    for texts in ([""] * self.batch, prompts)
                )
            away = led_away(nothing, concept, self.eta)
            begun = update - int(self.warmup * lesson.training.steps)
            if begun >= 0 and begun % self.every == 0:
                attacker.learn(prompts, views, concept, predict)
            erased = predict(views.inputs, views.timesteps, attacker.edited(prompts))
            kept_prompts, kept_views = keeping.views(self.batch, lesson.generator)
            inputs = kept_views.inputs, kept_views.timesteps
            with torch.no_grad():
                stays = predict(*inputs, lesson.bare(kept_prompts))
            kept = predict(*inputs, lesson.edited(kept_prompts))
            return Losses(mse(erased, away), self.keep * mse(kept, stays))

        return Objective(losses, {"attacker": attacker})


class _Attacker:
    """The word before the prompts; none until it has been learned for the first time."""

    def __init__(self, settings: AdvUnlearn, lesson: EncoderLesson) -> None:
        table = lesson.family.embeddings
        if table is None:
            raise ModelError(
                "the attacker's word is learned for one text encoder, and this model has several"
            )
        self._table = table.detach()
        self._settings, self._lesson = settings, lesson
        self._word: Tensor | None = None

    def state(self) -> dict[str, Tensor]:
        return {} if self._word is None else {"word": self._word}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self._word = state["word"].to(self._table) if state else None

    def edited(self, prompts: Sequence[str]) -> Conditioning:
        """The conditionings of the prompts behind the word, by the changed encoder."""
        if self._word is None:
            return self._lesson.edited(prompts)
        learned = [{WORD: self._word}] * len(prompts)
        return self._lesson.edited([f"{WORD} {prompt}" for prompt in prompts], learned=learned)

    def learn(
        self, prompts: Sequence[str], views: Views, concept: Tensor, predict: Predict
    ) -> None:
        """A new word, under which the changed encoder leads to the prediction `concept`."""
        chosen = torch.randint(len(self._table), (1,), generator=self._lesson.generator)
        word = self._table[chosen.to(self._table.device)].clone().requires_grad_()
        rate = self._settings.attack_rate * float(word.detach().square().mean().sqrt())
        optimiser = torch.optim.Adam([word], lr=rate)
        for _ in range(self._settings.attack_steps):
            self._word = word
            reached = predict(views.inputs, views.timesteps, self.edited(prompts))
            (word.grad,) = torch.autograd.grad(mse(reached, concept), word)
            optimiser.step()
        self._word = word.detach()
