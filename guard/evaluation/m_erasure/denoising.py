"""The denoising loss of images under a conditioning, which attackers minimise.

It is `|| truth - predict(scale x_t, t, text) ||²` over noisy views `x_t = signal x_0 + noise ε` of
clean latents. The true output follows from the scheduler's prediction type (`x_0 = p x_t + q out`,
`steering/engines/diffusion/sampling/estimates.py`), so the loss is the same for all schedulers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from steering.engines.diffusion.families import Family
from steering.engines.diffusion.rows import beside
from steering.engines.diffusion.sampling.estimates import clean_coefficients
from steering.engines.diffusion.sampling.samplers import probe
from steering.images.conditioning import Conditioning

LEVELS = 100
"""Timesteps to sample from, spread over the schedule as for an image with as many steps."""

Predict = Callable[[Tensor, Tensor, Conditioning], Tensor]
"""The network's output `[rows, ...]` for its inputs, timesteps `[rows]` and conditioning."""


def bare(family: Family) -> Predict:
    """The bare denoiser, without classifier-free guidance, in float32."""

    def predict(inputs: Tensor, timesteps: Tensor, text: Conditioning) -> Tensor:
        return family.predict(inputs, timesteps, text, torch.ones_like(timesteps)).float()

    return predict


@dataclass(frozen=True, eq=False)
class Views:
    """The network's inputs for noisy latents, their timesteps `[rows]`, and the true output.

    `noisy` are the latents before scaling, `sample` and `output` are p and q of `x̂_0 = p x_t + q
    out`, and `level [rows]` is the noise level.
    """

    inputs: Tensor
    timesteps: Tensor
    truth: Tensor
    noisy: Tensor
    sample: Tensor
    output: Tensor
    level: Tensor

    def estimate(self, prediction: Tensor) -> Tensor:
        """The clean latents of a prediction."""
        return self.sample * self.noisy + self.output * prediction


class Noising:
    """Makes noisy views of clean latents, with the tables of a family's scheduler.

    Raises ValueError for a scheduler that the engine does not support.
    """

    def __init__(self, family: Family) -> None:
        schedule = probe(family.scheduler, family.arrange, LEVELS)
        sample, output = clean_coefficients(family.scheduler, schedule)
        usable = output != 0
        columns = (schedule.timestep, schedule.input_scale, schedule.signal, schedule.noise)
        self._table = torch.stack([*columns, sample, output], 1)[usable].to(family.device)

    def views(self, latents: Tensor, generator: torch.Generator) -> Views:
        """One view of each of `latents [rows, ...]`, at stratified random timesteps."""
        rows = len(latents)
        offsets = torch.rand(rows, generator=generator)
        positions = (torch.randperm(rows, generator=generator) + offsets) / rows
        noise = torch.randn(latents.shape, generator=generator).to(latents)
        columns = self._table[(positions * len(self._table)).long().to(self._table.device)].unbind(
            1
        )
        timesteps, *others = columns
        scale, signal, level, sample, output = (beside(column, latents) for column in others)
        noisy = signal * latents + level * noise
        truth = (latents - sample * noisy) / output
        share = (level / (signal**2 + level**2).sqrt()).flatten()
        return Views(scale * noisy, timesteps, truth, noisy, sample, output, share)


def denoising_loss(predict: Predict, views: Views, text: Conditioning) -> Tensor:
    """The mean squared error, a scalar, differentiable with respect to `text`."""
    return (predict(views.inputs, views.timesteps, text) - views.truth).square().mean()
