"""The estimate of the finished image in a step's prediction: `x̂_0 = p_i x_i + q_i out_i`.

The meaning of `out` is the scheduler's `prediction_type`; signal and noise are those of the
schedule, so that the same formulas serve all schedulers, sigma-scaled ones too (their noise is
sigma, their signal one). The estimate is checked against the scheduler: its first step, which
never looks back, must lead to `signal_1 x̂_0 + noise_1 ε̂`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from steering.engines.diffusion.sampling.samplers import Schedule

_CLOSE = 0.05
"""Relative tolerance for the first step: some schedulers round levels to whole timesteps, while the
error of a wrong prediction type is far larger."""


@dataclass(frozen=True)
class Estimates:
    """The tables of one schedule, each `[evaluations]` and float32.

    `sample` and `output` are p and q. `next_signal` and `next_noise` are the signal and noise of
    the sample after an evaluation, `history` the factor of x̂_0 in the sampler's carry then.
    `whole` is False in the middle of a step of a higher-order scheduler, where the carry is
    something else and guards must not write the sample, and where the image cannot be estimated.
    `level` is the share of noise before an evaluation, `noise / √(signal² + noise²)`.
    """

    sample: Tensor
    output: Tensor
    next_signal: Tensor
    next_noise: Tensor
    history: Tensor
    whole: Tensor
    level: Tensor


def estimates_of(scheduler: Any, schedule: Schedule) -> Estimates:
    """The tables of a schedule. Raises ValueError as `clean_coefficients` does."""
    sample, output = clean_coefficients(scheduler, schedule)
    one, none = torch.ones(1), torch.zeros(1)
    carried_sample, carried_output = schedule.next_sample, schedule.next_output
    history = torch.where(carried_output == 0, 0.0, carried_output / output)
    error = (history * sample - carried_sample).abs()
    known = (sample != 0) | (output != 0)
    return Estimates(
        sample=sample,
        output=output,
        next_signal=torch.cat([schedule.signal[1:], one]),
        next_noise=torch.cat([schedule.noise[1:], none]),
        history=history,
        whole=known & history.isfinite() & (error <= 1e-3 * carried_sample.abs().clamp(min=1e-3)),
        level=schedule.noise / (schedule.signal**2 + schedule.noise**2).sqrt(),
    )


def clean_coefficients(scheduler: Any, schedule: Schedule) -> tuple[Tensor, Tensor]:
    """`p` and `q` of every evaluation, `[evaluations]`, float32.

    Both are zero where a sample is pure noise, so that its image cannot be estimated. Raises
    ValueError for an unknown prediction type, or one that the scheduler's steps contradict.
    """
    signal, noise = schedule.signal.double(), schedule.noise.double()
    kind = scheduler.config.get("prediction_type", "flow_prediction")
    power = signal**2 + noise**2
    one = torch.ones_like(signal)
    formulas = {
        "epsilon": (1 / signal, -noise / signal),
        "v_prediction": (signal / power, -noise / power.sqrt()),
        "sample": (0 * one, one),
        "flow_prediction": (one, -noise),
    }
    name = type(scheduler).__name__
    if kind not in formulas:
        raise ValueError(
            f"{name} predicts {kind}, from which no image can be estimated: use one of "
            f"{', '.join(formulas)}"
        )
    sample, output = formulas[kind]
    known = sample.isfinite() & output.isfinite()
    sample, output = sample.where(known, 0), output.where(known, 0)
    if len(schedule) > 1 and known[0]:
        ratio = noise[1] / noise[0]
        share = signal[1] - ratio * signal[0]
        expected = torch.stack([sample[0] * share + ratio, output[0] * share])
        first = torch.stack([schedule.sample[0], schedule.output[0]]).double()
        if bool((expected - first).abs().max() > _CLOSE * first[1].abs()):
            raise ValueError(f"{name} does not step by {kind}: its images cannot be estimated")
    return sample.float(), output.float()
