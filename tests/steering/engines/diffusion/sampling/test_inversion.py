"""Inverted schedules, with a smooth network of known output."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from steering.engines.diffusion.sampling.inversion import first_order, inverse
from steering.engines.diffusion.sampling.samplers import Schedule, probe
from tests.steering.engines.diffusion.sampling.test_samplers import FIT, arrange


def final_sample(schedule: Schedule, sample: Tensor, slope: float) -> Tensor:
    """The last sample of a schedule."""
    carry = torch.zeros_like(sample)
    for i in range(len(schedule)):
        time = schedule.timestep[i] / 1000
        output = slope * torch.tanh(schedule.input_scale[i] * sample + time)
        following = schedule.next_sample[i] * sample + schedule.next_output[i] * output
        sample = schedule.sample[i] * sample + schedule.output[i] * output + carry
        carry = following
    return sample


@pytest.mark.parametrize("name", FIT)
def test_generation_from_inverted_noise_gives_the_image_back(name: str) -> None:
    schedule = first_order(FIT[name], probe(FIT[name], arrange, 20))
    image = torch.randn(100, generator=torch.Generator().manual_seed(0))
    noise = final_sample(inverse(schedule), image, 0.1)
    assert len(inverse(schedule)) == 2 * len(schedule) == 40
    away = (final_sample(schedule, noise, 0.1) - image).abs().max()
    assert away < 0.1
    assert (final_sample(schedule, noise, 0.2) - image).abs().max() > 10 * away, (
        "the network matters"
    )


@pytest.mark.parametrize("name", ["dpm++ 2m", "heun"])
def test_steps_of_first_order_end_where_those_of_the_scheduler_do(name: str) -> None:
    whole = probe(FIT[name], arrange, 200)
    single = first_order(FIT[name], whole)
    assert len(single) == 200 and not single.next_sample.any() and not single.next_output.any()
    noise = torch.randn(100, generator=torch.Generator().manual_seed(0)) * whole.initial
    expected = final_sample(whole, noise, 0.5)
    assert (final_sample(single, noise, 0.5) - expected).abs().max() < 0.02 * expected.abs().max()


def test_a_first_order_schedule_is_returned_unchanged() -> None:
    schedule = probe(FIT["ddim"], arrange, 5)
    assert first_order(FIT["ddim"], schedule) is schedule


def test_a_step_that_keeps_nothing_of_its_sample_is_refused() -> None:
    scheduler = DDIMScheduler(clip_sample=False, prediction_type="sample")
    with pytest.raises(ValueError, match="5 steps are too few to invert"):
        inverse(probe(scheduler, arrange, 5))
    schedule = probe(FIT["ddim"], arrange, 5)
    with pytest.raises(ValueError, match="too few"):
        inverse(replace(schedule, sample=schedule.sample * 0))
