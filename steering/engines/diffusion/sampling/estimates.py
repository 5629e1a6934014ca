"""What a step's prediction says of the finished image: `x̂_0 = p_i x_i + q_i out_i`.

What `out` stands for is the scheduler's `prediction_type`; signal and noise are those of the
schedule, so that all schedulers are read alike, sigma-scaled ones too (their noise is sigma, their
signal one). The reading is held against the scheduler: its first step, which looks back on
nothing, must lead to `signal_1 x̂_0 + noise_1 ε̂`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from steering.engines.diffusion.sampling.samplers import Schedule

_CLOSE = 0.05
"""Of the first step: levels are rounded to whole timesteps here and there, while another prediction
is off by far more."""


@dataclass(frozen=True)
class Estimates:
    """The tables of one schedule, each `[evaluations]` and float32.

    `sample` and `output` are p and q. `next_signal` and `next_noise` say of what the sample behind
    an evaluation is made, `history` how much of x̂_0 the sampler's carry then is. `whole` is False
    where the carry is something else, in the middle of a step of a scheduler of a higher order:
    nobody else may write the sample there; and where no image can be told. `level` is the
    noise's share before an evaluation, `noise / √(signal² + noise²)`.
    """

    sample: Tensor
    output: Tensor
    next_signal: Tensor
    next_noise: Tensor
    history: Tensor
    whole: Tensor
    level: Tensor


def estimates_of(scheduler: Any, schedule: Schedule) -> Estimates:
    """Raises ValueError as `clean_coefficients` does."""
    sample, output = clean_coefficients(scheduler, schedule)
    one, none = torch.ones(1), torch.zeros(1)
    kept, made = schedule.next_sample, schedule.next_output
    history = torch.where(made == 0, 0.0, made / output)
    spread = (history * sample - kept).abs()
    told = (sample != 0) | (output != 0)
    return Estimates(
        sample=sample,
        output=output,
        next_signal=torch.cat([schedule.signal[1:], one]),
        next_noise=torch.cat([schedule.noise[1:], none]),
        history=history,
        whole=told & history.isfinite() & (spread <= 1e-3 * kept.abs().clamp(min=1e-3)),
        level=schedule.noise / (schedule.signal**2 + schedule.noise**2).sqrt(),
    )


def clean_coefficients(scheduler: Any, schedule: Schedule) -> tuple[Tensor, Tensor]:
    """`p` and `q` of every evaluation, `[evaluations]`, float32.

    Both are zero where a sample is noise alone and its image cannot be told. Raises ValueError
    for a prediction type that is not known, or which the scheduler does not step by.
    """
    signal, noise = schedule.signal.double(), schedule.noise.double()
    kind = scheduler.config.get("prediction_type", "flow_prediction")
    power = signal**2 + noise**2
    one = torch.ones_like(signal)
    read = {
        "epsilon": (1 / signal, -noise / signal),
        "v_prediction": (signal / power, -noise / power.sqrt()),
        "sample": (0 * one, one),
        "flow_prediction": (one, -noise),
    }
    named = type(scheduler).__name__
    if kind not in read:
        raise ValueError(f"{named} predicts {kind}, of which no image can be read")
    sample, output = read[kind]
    told = sample.isfinite() & output.isfinite()
    sample, output = sample.where(told, 0), output.where(told, 0)
    if len(schedule) > 1 and told[0]:
        ratio = noise[1] / noise[0]
        share = signal[1] - ratio * signal[0]
        expected = torch.stack([sample[0] * share + ratio, output[0] * share])
        first = torch.stack([schedule.sample[0], schedule.output[0]]).double()
        if bool((expected - first).abs().max() > _CLOSE * first[1].abs()):
            raise ValueError(f"{named} does not step by {kind}: its images cannot be read")
    return sample.float(), output.float()
