"""What a denoiser should say, told from the scheduler's tables, beside the scheduler's own word."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from guard.evaluation.m_erasure.denoising import LEVELS, Noising, Views, bare, denoising_loss
from steering.images.conditioning import Conditioning
from tests.steering.engines.diffusion import tiny

SCHEDULERS: dict[str, Any] = {
    kind: DDIMScheduler(
        beta_schedule="scaled_linear",
        clip_sample=False,
        timestep_spacing="trailing",
        prediction_type=kind,
    )
    for kind in ("epsilon", "v_prediction", "sample")
}


def noising(scheduler: Any) -> Noising:
    family = tiny.built("emoji")
    family.pipeline.scheduler = scheduler
    return Noising(family)


def test_a_view_is_the_schedulers() -> None:
    """Same noise, same timesteps: the inputs and the goals agree for each prediction type."""
    latents = torch.randn(16, 4, 2, 2, generator=torch.Generator().manual_seed(9))
    views = {
        kind: noising(scheduler).views(latents, torch.Generator().manual_seed(1))
        for kind, scheduler in SCHEDULERS.items()
    }
    for kind, scheduler in SCHEDULERS.items():
        times, noise = views[kind].timesteps.long(), views["epsilon"].truth
        torch.testing.assert_close(
            views[kind].inputs, scheduler.add_noise(latents, noise, times), atol=1e-4, rtol=1e-4
        )
        goal = {
            "epsilon": noise,
            "v_prediction": scheduler.get_velocity(latents, noise, times),
            "sample": latents,
        }[kind]
        torch.testing.assert_close(views[kind].truth, goal, atol=1e-3, rtol=1e-3)
    assert views["epsilon"].truth.std() == pytest.approx(1.0, abs=0.1)


def test_timesteps_are_sampled_evenly() -> None:
    table = noising(SCHEDULERS["v_prediction"])
    generator = torch.Generator().manual_seed(0)
    latents = torch.zeros(10, 1, 1, 1)
    timesteps = torch.stack([table.views(latents, generator).timesteps for _ in range(200)])
    counts = torch.histc(timesteps, 10, 0, 1000)
    assert int(counts.min()) == int(counts.max()) == 200, "one a stratum, each time"
    assert len(timesteps.unique()) == LEVELS
    assert timesteps[:, 0].std() > 200, "no image has a stratum of its own"


@pytest.mark.parametrize(
    "scheduler",
    [
        EulerDiscreteScheduler(beta_schedule="scaled_linear", timestep_spacing="trailing"),
        FlowMatchEulerDiscreteScheduler(shift=3.0),
    ],
)
def test_views_follow_from_the_levels_of_the_scheduler(scheduler: Any) -> None:
    latents = torch.randn(8, 4, 2, 2, generator=torch.Generator().manual_seed(9))
    views = noising(scheduler).views(latents, torch.Generator().manual_seed(1))
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        sigma = (views.timesteps / 1000)[:, None, None, None]
        noise = views.truth + latents
        mixed = (1 - sigma) * latents + sigma * noise
    else:
        alphas = scheduler.alphas_cumprod[views.timesteps.round().long()][:, None, None, None]
        noise = views.truth
        mixed = alphas.sqrt() * latents + (1 - alphas).sqrt() * noise
    torch.testing.assert_close(views.inputs, mixed, atol=2e-3, rtol=2e-3)
    assert noise.std() == pytest.approx(1.0, abs=0.1)


def test_the_loss_is_the_mean_squared_error_of_the_prediction() -> None:
    nothing = torch.zeros(2, 1)
    views = Views(
        inputs=nothing,
        timesteps=torch.zeros(2),
        truth=torch.tensor([[1.0], [3.0]]),
        noisy=nothing,
        sample=nothing,
        output=nothing,
        level=torch.zeros(2),
    )
    text = Conditioning({"text": torch.ones(2, 1, 1)}, {"text": torch.ones(2, 1).bool()})

    def predict(inputs: Tensor, timesteps: Tensor, text: Conditioning) -> Tensor:
        return inputs + text.states["text"][:, 0]

    assert float(denoising_loss(predict, views, text)) == 2.0


@torch.no_grad()
def test_the_bare_prediction_is_the_familys() -> None:
    family = tiny.built("emoji")
    text, inputs = family.encode(["a cat"]), family.noise([0])
    time = torch.tensor([500.0])
    prediction = family.predict(inputs, time, text, torch.ones(1))
    assert torch.equal(bare(family)(inputs, time, text), prediction)
