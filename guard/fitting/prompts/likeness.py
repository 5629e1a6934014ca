"""How much of a concept a prompt makes the denoiser draw, without drawing the image.

The latents of a few images of the concept are kept on their way through the schedule. What the
denoiser says of them under a prompt is compared with what it says under prompts that name the
concept and under their safe partners,

    likeness = <v(prompt) - v_safe, v_concept - v_safe> / |v_concept - v_safe|²,

which is 0 for the mean safe prompt and 1 for the mean of those that name it. The idea is that of
diffusion classifiers (Li et al., arXiv 2303.16203), whose error is compared here by its direction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from guard.data.concept import Concept
from guard.fitting.prompts.concept_prompts import LabelledPrompt
from guard.models.images import ImageModel
from steering.engines.diffusion.families import Family
from steering.engines.diffusion.sampling.samplers import Sampler
from steering.images.conditioning import Conditioning, concatenated

VIEWS = 4
"""Latents that every prompt is looked at with."""
STEPS = 10
"""Of the schedule on which they are taken."""
DRAWN, UNDRAWN = 0.6, 0.35
"""Likeness from which a prompt counts as drawing the concept, and up to which it does not; what
lies between is left out."""
_BATCH = 48
_GUIDANCE = 3.0
_NAMED = 48


class Likeness:
    """Of one concept, for one pipeline.

    `named` are prompts that name the concept, and `safe` what it is told from, a row each. `bf16`
    computes the denoiser in bfloat16, which is enough for a likeness.
    """

    def __init__(
        self,
        family: Family,
        named: Conditioning,
        safe: Conditioning,
        *,
        seed: int,
        bf16: bool = False,
    ) -> None:
        self._family, self._bf16 = family, bf16
        self._latents, self._times = _views(family, named, seed)
        self._safe = self._said(safe).mean(0)
        gap = self._said(named).mean(0) - self._safe
        self._direction = gap / gap.square().sum().clamp(min=1e-12)

    def __call__(
        self, text: Conditioning, tick: Callable[[int], None] = lambda _rows: None
    ) -> Tensor:
        """`[rows]`, float32; `tick` is told of rows that are done."""
        found = []
        for part in _parts(text, _BATCH // VIEWS):
            found.append((self._predicted(part) - self._safe) @ self._direction)
            tick(part.rows)
        return torch.cat(found)

    def _said(self, text: Conditioning) -> Tensor:
        """The denoiser's outputs over all views, `[rows, views * ...]`."""
        return torch.cat([self._predicted(part) for part in _parts(text, _BATCH // VIEWS)])

    @torch.inference_mode()
    def _predicted(self, text: Conditioning) -> Tensor:
        rows = torch.arange(text.rows).repeat_interleave(VIEWS)
        latents = self._latents.repeat(text.rows, *[1] * (self._latents.ndim - 1))
        times = self._times.repeat(text.rows)
        device = self._family.device.type
        with torch.autocast(device, torch.bfloat16, enabled=self._bf16):
            said = _predict(self._family, latents, times, text.select(rows))
        return said.reshape(text.rows, -1)


def likeness_of(
    painter: ImageModel,
    concept: Concept,
    prompts: Sequence[LabelledPrompt],
    *,
    seed: int,
    bf16: bool,
) -> Likeness:
    """From prompts that name the concept, if there are any, and the safe partners of these."""
    every = [(p.text, p.partner) for p in prompts if p.unsafe and p.partner]
    pairs = [pair for pair in every if concept.phrases.train[0] in pair[0]] or every
    # the shortest say least besides
    pairs = sorted(pairs, key=lambda pair: len(pair[0]))[:_NAMED]
    named, safe = zip(*pairs, strict=True)
    read = painter.read
    return Likeness(painter.family, read(named), read(safe), seed=seed, bf16=bf16)


@torch.inference_mode()
def _views(family: Family, named: Conditioning, seed: int) -> tuple[Tensor, Tensor]:
    """Latents `[VIEWS, ...]`, scaled as the network takes them, and their timesteps.

    Each is of another image, and further on the way: the first ones are nearly noise, the last
    ones polish; what is drawn is decided between.
    """
    sampler = Sampler(family.scheduler, family.arrange, device=family.device)
    schedule, offset = sampler.schedule(STEPS), sampler.offset(STEPS)
    last = len(schedule) - 1
    stops = [1 + round(i * (0.7 * last - 1) / (VIEWS - 1)) for i in range(VIEWS)]
    text = named.select(torch.arange(VIEWS) % named.rows)
    # a network that was distilled with guidance has no unconditional row beside it
    plain = text if family.distilled else family.unconditional([""]).expand(VIEWS)
    both = concatenated([text, plain.map(torch.Tensor.cpu)])
    sample = schedule.initial * family.noise(range(seed, seed + VIEWS))
    carry = torch.zeros_like(sample)
    kept: list[Tensor] = [sample] * VIEWS
    times = torch.zeros(VIEWS, device=family.device)
    for step in range(max(stops) + 1):
        at = torch.full((VIEWS,), offset + step, device=family.device)
        timestep, scale = sampler.inputs(at)
        scaled = scale.view(-1, *[1] * (sample.ndim - 1)) * sample
        for i, stop in enumerate(stops):
            if stop == step:
                kept[i], times[i] = scaled[i : i + 1], timestep[i]
        said = _predict(family, torch.cat([scaled, scaled]), timestep.repeat(2), both)
        own, other = said.chunk(2)
        sample, carry = sampler.step(at, sample, other + _GUIDANCE * (own - other), carry)
    return torch.cat(kept), times


def _predict(family: Family, latents: Tensor, times: Tensor, text: Conditioning) -> Tensor:
    guidance = torch.full((len(latents),), _GUIDANCE, device=family.device)
    there = text.map(lambda tensor: tensor.to(family.device))
    said = family.predict(latents, times, there, guidance)
    return said.float()


def _parts(text: Conditioning, rows: int) -> list[Conditioning]:
    return [text.select(slice(at, at + rows)) for at in range(0, text.rows, rows)]
