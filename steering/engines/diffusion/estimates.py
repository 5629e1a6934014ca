"""What a step's prediction says of the finished picture: `x̂_0 = p_i x_i + q_i out_i`.

What `out` stands for is the scheduler's `prediction_type`; signal and noise are those of the
schedule, so that all schedulers are read alike, sigma-scaled ones too (their noise is sigma, their
signal one). The reading is held against the scheduler: its first step, which looks back on
nothing, must lead to `signal_1 x̂_0 + noise_1 ε̂`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from steering.engines.diffusion.samplers import Schedule

_CLOSE = 0.05
"""Of the first step: levels are rounded to whole timesteps here and there, while another prediction
is off by far more."""


def clean_coefficients(scheduler: Any, schedule: Schedule) -> tuple[Tensor, Tensor]:
    """`p` and `q` of every evaluation, `[evaluations]`, float32.

    Both are zero where a sample is noise alone and its picture cannot be told. Raises ValueError
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
        raise ValueError(f"{named} predicts {kind}, of which no picture can be read")
    sample, output = read[kind]
    told = sample.isfinite() & output.isfinite()
    sample, output = sample.where(told, 0), output.where(told, 0)
    if len(schedule) > 1 and told[0]:
        ratio = noise[1] / noise[0]
        share = signal[1] - ratio * signal[0]
        expected = torch.stack([sample[0] * share + ratio, output[0] * share])
        first = torch.stack([schedule.sample[0], schedule.output[0]]).double()
        if bool((expected - first).abs().max() > _CLOSE * first[1].abs()):
            raise ValueError(f"{named} does not step by {kind}: its pictures cannot be read")
    return sample.float(), output.float()
