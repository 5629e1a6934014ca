"""Noise from which a guarded model draws given pictures: M-ErasureBench's white-box inversion.

DDIM inversion reads the bare sampler's steps backwards, and a guard that writes on the way has
none to be read. So the noise is searched for: gradient descent through the guarded sampling until
what comes out is near the scene, and the guards that look say little.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from guard.evaluation.erasure.learned import frozen
from guard.evaluation.erasure.sampling import GuardedSampling
from steering.engines.diffusion.families import Family


def invert_through(
    family: Family,
    sampling: GuardedSampling,
    scenes: Tensor,
    start: Tensor,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    steps: int,
    rate: float,
    evade: float,
    advance: Callable[[int], None] = lambda _count: None,
) -> Tensor:
    """The noise `[rows, channels, height, width]` that did best for each of `scenes`, beginning
    with `start`.

    A row's loss is the mean squared error of its latents to the scene's, plus `evade` times what
    guards say over their thresholds; Adam at `rate`, falling to nothing along a line. `advance` is
    told of each of the `steps`.
    """
    noise = start.clone().requires_grad_()
    optimiser = torch.optim.Adam([noise], lr=rate)
    decay = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, steps)
    least = torch.full((len(scenes),), torch.inf, device=scenes.device)
    best = start.clone()
    with torch.enable_grad(), frozen([family.denoiser]):
        for _ in range(steps):
            sampled = sampling(noise, prompts, seeds)
            loss = (sampled.latents - scenes).square().flatten(1).mean(1) + evade * sampled.seen
            better = loss.detach() < least
            least = torch.where(better, loss.detach(), least)
            best[better] = noise.detach()[better]
            (noise.grad,) = torch.autograd.grad(loss.sum(), noise)
            optimiser.step()
            decay.step()
            advance(1)
    return best
