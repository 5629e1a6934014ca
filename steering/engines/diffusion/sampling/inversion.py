"""Inversion: from an image to the noise from which a deterministic sampler generates it.

DDIM inversion (arXiv 2010.02502, section 4.3) solves the sampler's steps backwards. A first-order
step is `x_{i+1} = a_i x_i + b_i out(x_i, t_i)`, so `x_i = (x_{i+1} - b_i out(x_i, t_i)) / a_i`,
where the output is that at the unknown sample. The network is evaluated twice: at `x_{i+1}`, and at
the sample that this gives (one round of the fixed point iteration of AIDI, ICCV 2023). With one
evaluation, the usual form, coarse schedules lead back to another image. Both evaluations have the
form of `Sampler.step`: the first leaves `x_{i+1} / a_i` to the second as its carry.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from steering.engines.diffusion.sampling.estimates import clean_coefficients
from steering.engines.diffusion.sampling.samplers import Schedule

_LEAST = 1e-3
"""The least share of a sample that a step must keep to be invertible."""


def first_order(scheduler: Any, schedule: Schedule) -> Schedule:
    """A schedule with one first-order step from each level of noise to the next.

    It is `schedule` itself if its steps do not look back; otherwise DDIM's steps through its
    levels. Raises ValueError where `clean_coefficients` does.
    """
    if not (schedule.next_sample.any() or schedule.next_output.any()):
        return schedule
    coefficients = clean_coefficients(scheduler, schedule)
    # a schedule of a higher order has the same level at two evaluations
    levels = [0, *(i for i in range(1, len(schedule)) if schedule.noise[i] < schedule.noise[i - 1])]
    at = torch.tensor(levels)
    tables = (schedule.signal, schedule.noise, *coefficients)
    signal, noise, p, q = (table[at].double() for table in tables)
    signal_after = torch.cat([signal[1:], torch.ones(1).double()])
    left = torch.cat([noise[1:], torch.zeros(1).double()]) / noise
    nothing = torch.zeros(len(at))
    return Schedule(
        timestep=schedule.timestep[at],
        input_scale=schedule.input_scale[at],
        signal=schedule.signal[at],
        noise=schedule.noise[at],
        sample=(signal_after * p + left * (1 - signal * p)).float(),
        output=((signal_after - left * signal) * q).float(),
        next_sample=nothing,
        next_output=nothing,
        initial=schedule.initial,
    )


def inverse(schedule: Schedule) -> Schedule:
    """The schedule from clean latents to the first sample of `schedule`, which is first-order.

    It has two evaluations a step. Raises ValueError if a step keeps nothing of its sample, and so
    cannot be inverted.
    """
    if bool((schedule.sample.abs() < _LEAST).any()):
        raise ValueError(f"{len(schedule)} steps are too few to invert an image: ask for more")
    order = torch.arange(len(schedule)).flip(0)
    kept = 1 / schedule.sample[order]
    change = -schedule.output[order] * kept
    scale = schedule.input_scale[order]
    nothing = torch.zeros(len(order))
    return Schedule(
        timestep=_twice(schedule.timestep[order], schedule.timestep[order]),
        # the first of the two is at the cleaner sample
        input_scale=_twice(torch.cat([torch.ones(1), scale[:-1]]), scale),
        signal=_twice(schedule.signal[order], schedule.signal[order]),
        noise=_twice(schedule.noise[order], schedule.noise[order]),
        sample=_twice(kept, nothing),
        output=_twice(change, change),
        next_sample=_twice(kept, nothing),
        next_output=_twice(nothing, nothing),
        initial=1.0,
    )


def _twice(first: Tensor, second: Tensor) -> Tensor:
    """Both values of each step, one after the other."""
    return torch.stack([first, second], 1).flatten()
