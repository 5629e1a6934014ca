"""How well a denoiser explains images under a conditioning: the loss that attackers minimise.

`|| truth - predict(scale x_t, t, text) ||²` over noisy views `x_t = signal x_0 + noise ε` of clean
latents. What the prediction should be follows from the scheduler's prediction type (`x_0 = p x_t +
q out`, `steering/engines/diffusion/sampling/estimates.py`), so that all schedulers are treated
alike.
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
"""Timesteps that are drawn from, spread over the schedule as for an image of as many steps."""

Predict = Callable[[Tensor, Tensor, Conditioning], Tensor]
"""The network's output `[rows, ...]` for its inputs and timesteps `[rows]`, under `text`."""


def bare(family: Family) -> Predict:
    """The denoiser as it is, without classifier-free guidance, float32."""

    def predict(inputs: Tensor, timesteps: Tensor, text: Conditioning) -> Tensor:
        return family.predict(inputs, timesteps, text, torch.ones_like(timesteps)).float()

    return predict


@dataclass(frozen=True, eq=False)
class Views:
    """Noisy latents as the network takes them, their timesteps `[rows]`, and the true output.

    `noisy` are the latents before they are scaled, `sample` and `output` p and q of `x̂_0 = p x_t +
    q out`, and `level [rows]` is the noise's share.
    """

    inputs: Tensor
    timesteps: Tensor
    truth: Tensor
    noisy: Tensor
    sample: Tensor
    output: Tensor
    level: Tensor

    def estimate(self, said: Tensor) -> Tensor:
        """The clean latents that an output stands for."""
        return self.sample * self.noisy + self.output * said


class Noising:
    """Makes views of clean latents, by the tables of a family's scheduler.

    Raises ValueError for a scheduler that the engine does not take.
    """

    def __init__(self, family: Family) -> None:
        schedule = probe(family.scheduler, family.arrange, LEVELS)
        sample, output = clean_coefficients(family.scheduler, schedule)
        told = output != 0
        columns = (schedule.timestep, schedule.input_scale, schedule.signal, schedule.noise)
        self._table = torch.stack([*columns, sample, output], 1)[told].to(family.device)

    def views(self, latents: Tensor, generator: torch.Generator) -> Views:
        """One view of each of `latents [rows, ...]`, at timesteps drawn evenly, one a stratum."""
        rows = len(latents)
        drawn = torch.rand(rows, generator=generator)
        places = (torch.randperm(rows, generator=generator) + drawn) / rows
        noise = torch.randn(latents.shape, generator=generator).to(latents)
        columns = self._table[(places * len(self._table)).long().to(self._table.device)].unbind(1)
        timesteps, *others = columns
        scale, signal, level, sample, output = (beside(column, latents) for column in others)
        noisy = signal * latents + level * noise
        truth = (latents - sample * noisy) / output
        share = (level / (signal**2 + level**2).sqrt()).flatten()
        return Views(scale * noisy, timesteps, truth, noisy, sample, output, share)


def denoising_loss(predict: Predict, views: Views, text: Conditioning) -> Tensor:
    """The mean squared error, a scalar, differentiable with respect to `text`."""
    return (predict(views.inputs, views.timesteps, text) - views.truth).square().mean()
