"""Estimates of the finished image, compared with the image in the sample."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler

from steering.engines.diffusion.sampling.estimates import clean_coefficients, estimates_of
from steering.engines.diffusion.sampling.samplers import Schedule, probe
from tests.steering.engines.diffusion.sampling.test_samplers import FIT, arrange


def true_output(
    kind: str, schedule: Schedule, clean: torch.Tensor, noise: torch.Tensor
) -> torch.Tensor:
    """The output of a perfect network at each evaluation."""
    if kind == "epsilon":
        return noise
    if kind == "v_prediction":
        power = (schedule.signal**2 + schedule.noise**2).sqrt()
        return (schedule.signal * noise - schedule.noise * clean) / power
    return noise - clean


@pytest.mark.parametrize("steps", [1, 7, 20])
@pytest.mark.parametrize("name", FIT)
def test_a_perfect_prediction_gives_the_image_back(name: str, steps: int) -> None:
    scheduler = FIT[name]
    schedule = probe(scheduler, arrange, steps)
    kind = scheduler.config.get("prediction_type", "flow_prediction")
    clean, noise = torch.randn(2, len(schedule), generator=torch.Generator().manual_seed(0))
    sample = schedule.signal * clean + schedule.noise * noise
    output = true_output(kind, schedule, clean, noise)
    p, q = clean_coefficients(scheduler, schedule)
    torch.testing.assert_close(p * sample + q * output, clean, rtol=2e-3, atol=2e-3)


def test_the_prediction_of_an_image_is_the_estimate() -> None:
    scheduler = DDIMScheduler(clip_sample=False, prediction_type="sample")
    p, q = clean_coefficients(scheduler, probe(scheduler, arrange, 5))
    assert not p.any() and (q == 1).all()


def test_pure_noise_has_no_estimate() -> None:
    scheduler = EulerDiscreteScheduler()
    schedule = probe(scheduler, arrange, 4)
    schedule = replace(schedule, signal=schedule.signal * 0)
    p, q = clean_coefficients(scheduler, schedule)
    assert not p.any() and not q.any()


def test_evaluations_without_an_estimate_are_not_whole() -> None:
    scheduler = DDIMScheduler(clip_sample=False)
    schedule = probe(scheduler, arrange, 4)
    blind = replace(schedule, signal=schedule.signal * torch.tensor([0.0, 1, 1, 1]))
    assert estimates_of(scheduler, schedule).whole.tolist() == [True] * 4
    assert estimates_of(scheduler, blind).whole.tolist() == [False, True, True, True]


def test_a_prediction_type_that_the_steps_contradict_is_refused() -> None:
    scheduler = DPMSolverMultistepScheduler(prediction_type="epsilon")
    schedule = probe(scheduler, arrange, 8)
    other = DPMSolverMultistepScheduler(prediction_type="v_prediction")
    with pytest.raises(ValueError, match="does not step by v_prediction"):
        clean_coefficients(other, schedule)


def test_an_unknown_prediction_is_refused_by_name() -> None:
    scheduler = DDIMScheduler(clip_sample=False)
    schedule = probe(scheduler, arrange, 4)
    scheduler.register_to_config(prediction_type="riddles")
    with pytest.raises(ValueError, match="DDIMScheduler predicts riddles"):
        clean_coefficients(scheduler, schedule)
