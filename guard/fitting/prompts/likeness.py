"""The likeness of a prompt to a concept, as the denoiser sees it, without generating an image.

Noisy latents of a few images of the concept are recorded at several timesteps. The denoiser's
prediction for them under a prompt is compared with its predictions under prompts that name the
concept and under their safe partners,

    likeness = <v(prompt) - v_safe, v_concept - v_safe> / |v_concept - v_safe|²,

which is 0 for the mean safe prompt and 1 for the mean prompt that names it. The idea is that of
diffusion classifiers (Li et al., arXiv 2303.16203), here with the direction of the error.
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
"""Noisy latents with which each prompt is compared."""
STEPS = 10
"""Steps of the schedule on which they are recorded."""
DRAWN, UNDRAWN = 0.6, 0.35
"""From the first likeness on a prompt counts as showing the concept, up to the second one as not
showing it; prompts in between are left out."""
_BATCH = 48
_GUIDANCE = 3.0
_NAMED = 48


class Likeness:
    """The likeness to one concept, for one pipeline.

    `named` are prompts that name the concept, and `safe` the prompts it is told apart from, one row
    each. With `bf16` the denoiser runs in bfloat16, which is enough for a likeness.
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
        with torch.no_grad():
            self._latents, self._times = _views(family, named, seed)
            self._safe = self._predict_all(safe).mean(0)
            gap = self._predict_all(named).mean(0) - self._safe
        self._direction = gap / gap.square().sum().clamp(min=1e-12)

    @torch.no_grad()
    def __call__(
        self, text: Conditioning, advance: Callable[[int], None] = lambda _rows: None
    ) -> Tensor:
        """`[rows]`, float32; `advance` gets the number of rows after each batch."""
        likeness = []
        for part in _parts(text, _BATCH // VIEWS):
            likeness.append(self.differentiable(part))
            advance(part.rows)
        return torch.cat(likeness)

    def differentiable(self, text: Conditioning) -> Tensor:
        """The same of a few rows at once, with the graph that leads to their states."""
        likeness: Tensor = (self._predict(text) - self._safe) @ self._direction
        return likeness

    def _predict_all(self, text: Conditioning) -> Tensor:
        """The denoiser's outputs over all views, `[rows, views * ...]`."""
        return torch.cat([self._predict(part) for part in _parts(text, _BATCH // VIEWS)])

    def _predict(self, text: Conditioning) -> Tensor:
        rows = torch.arange(text.rows).repeat_interleave(VIEWS)
        latents = self._latents.repeat(text.rows, *[1] * (self._latents.ndim - 1))
        times = self._times.repeat(text.rows)
        device = self._family.device.type
        with torch.autocast(device, torch.bfloat16, enabled=self._bf16):
            predictions = _network(self._family, latents, times, text.select(rows))
        return predictions.reshape(text.rows, -1)


def likeness_of(
    image_model: ImageModel,
    concept: Concept,
    prompts: Sequence[LabelledPrompt],
    *,
    seed: int,
    bf16: bool,
) -> Likeness:
    """The likeness to `concept`, from prompts that name it, if any do, and their partners."""
    all_pairs = [(p.text, p.partner) for p in prompts if p.unsafe and p.partner]
    pairs = [pair for pair in all_pairs if concept.phrases.train[0] in pair[0]] or all_pairs
    # the shortest ones contain little else
    pairs = sorted(pairs, key=lambda pair: len(pair[0]))[:_NAMED]
    named, safe = zip(*pairs, strict=True)
    encode = image_model.encode
    return Likeness(image_model.family, encode(named), encode(safe), seed=seed, bf16=bf16)


def _views(family: Family, named: Conditioning, seed: int) -> tuple[Tensor, Tensor]:
    """Latents `[VIEWS, ...]`, scaled for the network, and their timesteps.

    Each is of another image and from a later step than the one before: the first are close to
    noise, the last close to a finished image, and the content is decided in between.
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
    views: list[Tensor] = [sample] * VIEWS
    times = torch.zeros(VIEWS, device=family.device)
    for step in range(max(stops) + 1):
        index = torch.full((VIEWS,), offset + step, device=family.device)
        timestep, scale = sampler.inputs(index)
        scaled = scale.view(-1, *[1] * (sample.ndim - 1)) * sample
        for i, stop in enumerate(stops):
            if stop == step:
                views[i], times[i] = scaled[i : i + 1], timestep[i]
        prediction = _network(family, torch.cat([scaled, scaled]), timestep.repeat(2), both)
        conditional, unconditional = prediction.chunk(2)
        sample, carry = sampler.step(
            index, sample, unconditional + _GUIDANCE * (conditional - unconditional), carry
        )
    return torch.cat(views), times


def _network(family: Family, latents: Tensor, times: Tensor, text: Conditioning) -> Tensor:
    guidance = torch.full((len(latents),), _GUIDANCE, device=family.device)
    text_on_device = text.map(lambda tensor: tensor.to(family.device))
    prediction = family.predict(latents, times, text_on_device, guidance)
    return prediction.float()


def _parts(text: Conditioning, rows: int) -> list[Conditioning]:
    return [text.select(slice(start, start + rows)) for start in range(0, text.rows, rows)]
