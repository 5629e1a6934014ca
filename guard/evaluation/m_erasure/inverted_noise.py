"""Noise from which a guarded model generates given images: M-ErasureBench's white-box inversion.

DDIM inversion reverses the bare sampler's steps, which is not possible for the writes of a guard.
So the noise is searched for: gradient descent through the guarded sampling, until the image is near
the scene and the scores of the guards are low.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from guard.evaluation.m_erasure.learned_words import frozen
from guard.evaluation.m_erasure.sampling import Sampled
from guard.evaluation.m_erasure.suite import InvertedSettings
from steering.engines.diffusion.families import Family


def invert_through(
    family: Family,
    sampling: Callable[[Tensor, Sequence[str], Sequence[int]], Sampled],
    scenes: Tensor,
    start: Tensor,
    prompts: Sequence[str],
    seeds: Sequence[int],
    settings: InvertedSettings,
    advance: Callable[[int], None] = lambda _count: None,
) -> Tensor:
    """The best noise `[rows, channels, height, width]` for each of `scenes`, searched from `start`.

    `sampling` is a GuardedSampling. A row's loss is the mean squared error of its latents to the
    scene's, plus `settings.evade` times the guards' scores over their thresholds. Adam's rate falls
    linearly to 0. A row whose loss is at most `settings.near` is finished. `advance` gets 1 after
    each step.
    """
    steps = settings.steps
    noise = start.clone().requires_grad_()
    optimiser = torch.optim.Adam([noise], lr=settings.rate)
    decay = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, steps)
    least = torch.full((len(scenes),), torch.inf, device=scenes.device)
    best = start.clone()
    with torch.enable_grad(), frozen([family.denoiser]):
        for step in range(steps):
            (rows,) = torch.where(least > settings.near)
            if not len(rows):
                advance(steps - step)
                break
            starts = [(prompts[row], seeds[row]) for row in rows.tolist()]
            sampled = sampling(noise[rows], *zip(*starts, strict=True))
            error = (sampled.latents - scenes[rows]).square().flatten(1).mean(1)
            loss = error + settings.evade * sampled.excess
            (noise.grad,) = torch.autograd.grad(loss.sum(), noise)
            better = rows[loss.detach() < least[rows]]
            best[better] = noise.detach()[better]
            least[rows] = torch.minimum(least[rows], loss.detach())
            optimiser.step()
            decay.step()
            advance(1)
    return best
