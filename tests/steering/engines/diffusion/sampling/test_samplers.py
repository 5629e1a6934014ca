"""Schedulers as tables, compared with the schedulers themselves, row by row."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from diffusers import schedulers
from torch import Tensor

from steering.engines.diffusion.sampling.samplers import Sampler, probe

FIT: dict[str, Any] = {
    "ddim": schedulers.DDIMScheduler(clip_sample=False, beta_schedule="scaled_linear"),
    "ddim, v, trailing, no signal at first": schedulers.DDIMScheduler(
        clip_sample=False,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
    ),
    "euler": schedulers.EulerDiscreteScheduler(beta_schedule="scaled_linear"),
    "euler, karras": schedulers.EulerDiscreteScheduler(use_karras_sigmas=True),
    "flow": schedulers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    "dpm++ 2m": schedulers.DPMSolverMultistepScheduler(),
    "dpm++ 2m, flow": schedulers.DPMSolverMultistepScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0
    ),
    "heun": schedulers.HeunDiscreteScheduler(),
}
UNFIT: dict[str, Any] = {
    "clip_sample=True": schedulers.DDIMScheduler(),
    "thresholding=True": schedulers.DDIMScheduler(clip_sample=False, thresholding=True),
    "stochastic_sampling=True": schedulers.FlowMatchEulerDiscreteScheduler(
        stochastic_sampling=True
    ),
    "DPMSolverMultistepScheduler": schedulers.DPMSolverMultistepScheduler(solver_order=3),
    "DDPMScheduler": schedulers.DDPMScheduler(clip_sample=False),
    "EulerAncestralDiscreteScheduler": schedulers.EulerAncestralDiscreteScheduler(),
    "LCMScheduler": schedulers.LCMScheduler(clip_sample=False),
    "PNDMScheduler": schedulers.PNDMScheduler(skip_prk_steps=True),
    "UniPCMultistepScheduler": schedulers.UniPCMultistepScheduler(),
    # divides by a signal of zero
    "DDIMScheduler": schedulers.DDIMScheduler(
        clip_sample=False, timestep_spacing="trailing", rescale_betas_zero_snr=True
    ),
}


def arrange(scheduler: Any, steps: int) -> None:
    scheduler.set_timesteps(steps)


def reference(scheduler: Any, steps: int, noise: Tensor, outputs: Tensor) -> Tensor:
    """The sample that the scheduler makes of noise, run as by a pipeline."""
    running = copy.deepcopy(scheduler)
    running.set_timesteps(steps)
    sample = noise * getattr(running, "init_noise_sigma", 1.0)
    for time, output in zip(running.timesteps, outputs, strict=True):
        if hasattr(running, "scale_model_input"):
            running.scale_model_input(sample, time)
        sample = running.step(output, time, sample, return_dict=False)[0]
    return sample


@pytest.mark.parametrize("name", FIT)
def test_rows_of_any_number_of_steps_share_a_step(name: str) -> None:
    scheduler, generator = FIT[name], torch.Generator().manual_seed(0)
    sampler = Sampler(scheduler, arrange)
    counts = (3, 20, 7)
    schedules = [sampler.schedule(steps) for steps in counts]
    noise = torch.randn(3, 1, 2, 4, 4, generator=generator)
    outputs = [torch.randn(len(s), 1, 2, 4, 4, generator=generator) for s in schedules]
    initial = torch.tensor([schedule.initial for schedule in schedules])
    sample = noise[:, 0] * initial.view(-1, 1, 1, 1)
    carry = torch.zeros_like(sample)
    for step in range(max(map(len, schedules))):
        live = [row for row in range(3) if step < len(schedules[row])]
        at = torch.tensor([sampler.offset(counts[row]) + step for row in live])
        output = torch.cat([outputs[row][step] for row in live])
        sample[live], carry[live] = sampler.step(at, sample[live], output, carry[live])
    for row, steps in enumerate(counts):
        expected = reference(scheduler, steps, noise[row], outputs[row])[0]
        largest = max(float(expected.abs().max()), float(initial[row]))
        torch.testing.assert_close(sample[row], expected, rtol=1e-5, atol=1e-5 * largest)


@pytest.mark.parametrize("name", FIT)
def test_timesteps_and_input_scales_are_the_schedulers(name: str) -> None:
    scheduler = FIT[name]
    sampler = Sampler(scheduler, arrange)
    sampler.schedule(4)
    at = sampler.offset(9) + torch.arange(len(sampler.schedule(9)))
    timesteps, scales = sampler.inputs(at)
    running = copy.deepcopy(scheduler)
    running.set_timesteps(9)
    assert timesteps.tolist() == running.timesteps.float().tolist()
    for time, scale in zip(running.timesteps, scales, strict=True):
        sample = torch.ones(1, 1, 1, 1)
        if hasattr(running, "scale_model_input"):
            running._step_index = None
            sample = running.scale_model_input(sample, time)
        # of a timestep that occurs twice (Heun), the scheduler takes the second
        assert float(scale) == pytest.approx(float(sample))


@pytest.mark.parametrize("name", FIT)
def test_signal_and_noise_are_those_of_the_scheduler(name: str) -> None:
    scheduler = FIT[name]
    schedule = probe(scheduler, arrange, 8)
    running = copy.deepcopy(scheduler)
    running.set_timesteps(8)
    generator = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, len(schedule), 2, 3, 3, generator=generator)
    if hasattr(running, "scale_noise"):
        expected = running.scale_noise(clean, running.timesteps, noise)
    else:
        expected = running.add_noise(clean, noise, running.timesteps)
    made = schedule.signal.view(-1, 1, 1, 1) * clean + schedule.noise.view(-1, 1, 1, 1) * noise
    torch.testing.assert_close(made, expected, rtol=1e-5, atol=1e-5 * float(schedule.noise.max()))
    assert (schedule.noise.diff() <= 1e-6).all() and (schedule.signal.diff() >= -1e-6).all()


@pytest.mark.parametrize("name", UNFIT)
def test_other_schedulers_are_refused_by_name(name: str) -> None:
    scheduler = UNFIT[name]
    with pytest.raises(ValueError, match=type(scheduler).__name__) as caught:
        probe(scheduler, arrange, 20)
    if "=" in name:
        assert name.replace("True", "False") in str(caught.value)
    else:
        assert "Use one of DDIMScheduler" in str(caught.value)


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_impossible_numbers_of_steps_are_refused(steps: int) -> None:
    with pytest.raises(ValueError, match="steps"):
        Sampler(FIT["ddim"], arrange).schedule(steps)


def test_probing_leaves_the_scheduler_and_the_random_numbers_alone() -> None:
    scheduler = schedulers.DPMSolverMultistepScheduler()
    scheduler.set_timesteps(5)
    before, state = copy.deepcopy(vars(scheduler)), torch.get_rng_state()
    probe(scheduler, arrange, 20)
    with pytest.raises(ValueError):
        probe(UNFIT["DDPMScheduler"], arrange, 20)
    assert torch.equal(torch.get_rng_state(), state)
    assert vars(scheduler).keys() == before.keys()
    assert torch.equal(scheduler.timesteps, before["timesteps"])
    assert scheduler.model_outputs == before["model_outputs"]


@pytest.mark.parametrize("skipped", [1, 4, 6])
@pytest.mark.parametrize("name", FIT)
def test_a_schedule_may_begin_later_as_in_pipelines_that_start_from_an_image(
    name: str, skipped: int
) -> None:
    scheduler, generator = FIT[name], torch.Generator().manual_seed(0)
    running = copy.deepcopy(scheduler)
    running.set_timesteps(7)
    first = skipped * running.order
    image, noise = torch.randn(2, 1, 2, 4, 4, generator=generator)
    # as in stock pipelines, noise is added before the begin index is set
    first_timestep = running.timesteps[first : first + 1]
    if hasattr(running, "scale_noise"):
        reference = running.scale_noise(image, first_timestep, noise)
    else:
        reference = running.add_noise(image, noise, first_timestep)
    if hasattr(running, "set_begin_index"):
        running.set_begin_index(first)
    sampler = Sampler(scheduler, arrange)
    schedule, offset = sampler.schedule(7, skipped), sampler.offset(7, skipped)
    assert torch.equal(schedule.timestep, running.timesteps[first:].float())
    whole = sampler.schedule(7)
    assert torch.equal(schedule.signal, whole.signal[first:])
    assert torch.equal(schedule.noise, whole.noise[first:])
    sample = schedule.signal[0] * image + schedule.noise[0] * noise
    torch.testing.assert_close(sample, reference, rtol=1e-4, atol=1e-4)
    carry = torch.zeros_like(sample)
    for step, time in enumerate(running.timesteps[first:]):
        output = torch.randn(1, 2, 4, 4, generator=generator)
        if hasattr(running, "scale_model_input"):
            running.scale_model_input(reference, time)
        reference = running.step(output, time, reference, return_dict=False)[0]
        sample, carry = sampler.step(torch.tensor([offset + step]), sample, output, carry)
    torch.testing.assert_close(sample, reference, rtol=1e-4, atol=1e-3)


def test_skipping_all_steps_is_refused() -> None:
    with pytest.raises(ValueError, match="7 of 7 steps cannot be skipped"):
        probe(FIT["ddim"], arrange, 7, 7)
