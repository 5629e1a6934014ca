"""A few states of the text encoder's space that stand for pictures of a concept.

Published erasers take them from an IP-Adapter, which the pipelines that are served here do not
have. Here they are learned: Adam finds the states under which the bare denoiser denoises the
model's own images of the concept best, behind an empty prompt (textual inversion, arXiv 2208.01618,
behind the encoder in place of before it).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from guard.errors import ModelError
from guard.evaluation.m_erasure.denoising import bare, denoising_loss
from guard.fitting.images.trained.denoisers.lesson import DenoiserLesson, nothing
from guard.fitting.images.trained.noisy_images import ImageSettings
from steering.images.conditioning import Conditioning


@dataclass(frozen=True)
class PictureSettings:
    """`count` tokens, learned in `updates` of Adam at `rate`, in units of the states' root mean
    square, on `batch` views each."""

    count: int = 4
    updates: int = 40
    rate: float = 0.1
    batch: int = 4
    images: ImageSettings = field(default_factory=lambda: ImageSettings(count=16))


class PictureTokens:
    """Tokens `[count, width]` of each stream that has a state for each token; pooled ones are left
    alone. Raises ModelError for an encoder that has pooled states only."""

    def __init__(self, tokens: dict[str, Tensor]) -> None:
        if not tokens:
            raise ModelError(
                "picture tokens need an encoder with token states: this one has pooled ones only"
            )
        self.tokens = tokens

    def beside(self, text: Conditioning) -> Conditioning:
        """Each prompt with the tokens behind its states, refined by its own: attention whose
        queries are the tokens, and whose keys and values are the prompt's real states."""
        states, masks = dict(text.states), dict(text.masks)
        for name, tokens in self.tokens.items():
            refined = refined_by(tokens, text.states[name], text.masks[name])
            states[name] = torch.cat([states[name], refined.to(states[name].dtype)], 1)
            masks[name] = torch.cat([masks[name], masks[name].new_ones(refined.shape[:2])], 1)
        return Conditioning(states, masks)


def refined_by(tokens: Tensor, states: Tensor, mask: Tensor) -> Tensor:
    """`[rows, count, width]`: attention of `tokens [count, width]` to `states [rows, tokens,
    width]` where `mask [rows, tokens]`."""
    queries = tokens.float().expand(len(states), *tokens.shape)
    keys = states.float()
    logits = queries @ keys.mT / keys.shape[-1] ** 0.5
    refined: Tensor = logits.masked_fill(~mask[:, None], -torch.inf).softmax(-1) @ keys
    return refined


def learned_tokens(
    lesson: DenoiserLesson, prompts: Sequence[str], settings: PictureSettings
) -> PictureTokens:
    """Tokens of the bare model's images of `prompts`."""
    images = lesson.images(prompts, settings.images)
    empty = lesson.encode(nothing(settings.batch))
    learned, sizes = {}, {}
    for name, states in empty.states.items():
        if states.shape[1] > 1:
            size = states.float().square().mean().sqrt()
            shape = (settings.count, states.shape[-1])
            noise = torch.randn(shape, generator=lesson.generator).to(states.device)
            learned[name], sizes[name] = (size * noise).requires_grad_(), size
    tokens = PictureTokens(learned)
    groups = [
        {"params": [of], "lr": settings.rate * float(sizes[name])} for name, of in learned.items()
    ]
    optimiser, predict = torch.optim.Adam(groups), bare(lesson.family)
    advance = lesson.progress("learning picture tokens", settings.updates)
    with torch.enable_grad():
        for _ in range(settings.updates):
            _, views = images.views(settings.batch, lesson.generator)
            loss = denoising_loss(predict, views, _behind(empty, learned))
            gradients = torch.autograd.grad(loss, list(learned.values()))
            for of, gradient in zip(learned.values(), gradients, strict=True):
                of.grad = gradient
            optimiser.step()
            advance(1)
    return PictureTokens({name: of.detach() for name, of in tokens.tokens.items()})


def _behind(text: Conditioning, tokens: dict[str, Tensor]) -> Conditioning:
    """Tokens behind the states of a text, as they are."""
    states, masks = dict(text.states), dict(text.masks)
    for name, of in tokens.items():
        rows = of.expand(text.rows, *of.shape).to(states[name].dtype)
        states[name] = torch.cat([states[name], rows], 1)
        masks[name] = torch.cat([masks[name], masks[name].new_ones(rows.shape[:2])], 1)
    return Conditioning(states, masks)
