"""The way back from an image to the noise that a deterministic sampler draws it from.

DDIM inversion (arXiv 2010.02502, section 4.3) reads the sampler's steps backwards. A step without
looking back is `x_{i+1} = a_i x_i + b_i out(x_i, t_i)`, so `x_i = (x_{i+1} - b_i out(x_i, t_i)) /
a_i`, in which the output is at the sample that is sought. It is asked for twice: at `x_{i+1}`, and
at the sample that this gives (one round of the fixed point iteration of AIDI, ICCV 2023). Asked
once, which is the usual form, coarse schedules lead back to another image. Both are of the form
of `Sampler.step`: the first evaluation leaves `x_{i+1} / a_i` to the second as its carry.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from steering.engines.diffusion.sampling.estimates import clean_coefficients
from steering.engines.diffusion.sampling.samplers import Schedule

_LEAST = 1e-3
"""Of a sample that a step leaves, so that it can be read backwards."""


def first_order(scheduler: Any, schedule: Schedule) -> Schedule:
    """One step from each level of noise to the next that looks back on nothing.

    The schedule itself where it does not either; elsewhere DDIM's steps through its levels. Raises
    ValueError where `clean_coefficients` does.
    """
    if not (schedule.next_sample.any() or schedule.next_output.any()):
        return schedule
    told = clean_coefficients(scheduler, schedule)
    # a level that is evaluated twice stands there twice
    levels = [0, *(i for i in range(1, len(schedule)) if schedule.noise[i] < schedule.noise[i - 1])]
    at = torch.tensor(levels)
    signal, noise, p, q = (each[at].double() for each in (schedule.signal, schedule.noise, *told))
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
    """From clean latents to the first sample of `schedule`, whose steps look back on nothing.

    Two evaluations a step. Raises ValueError where a step keeps nothing of its sample, and so
    cannot be read backwards.
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
    """Of each step the one, then the other."""
    return torch.stack([first, second], 1).flatten()
