"""Noise from which a guarded model draws given images: M-ErasureBench's white-box inversion.

DDIM inversion reads the bare sampler's steps backwards, and a guard that writes on the way has
none to be read. So the noise is searched for: gradient descent through the guarded sampling until
what comes out is near the scene, and the guards that look say little.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from guard.evaluation.m_erasure.learned_words import frozen
from guard.evaluation.m_erasure.sampling import Sampled
from steering.engines.diffusion.families import Family


def invert_through(
    family: Family,
    sampling: Callable[[Tensor, Sequence[str], Sequence[int]], Sampled],
    scenes: Tensor,
    start: Tensor,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    steps: int,
    rate: float,
    evade: float,
    near: float = 0.0,
    advance: Callable[[int], None] = lambda _count: None,
) -> Tensor:
    """The noise `[rows, channels, height, width]` that did best for each of `scenes`, beginning
    with `start`; `sampling` is a GuardedSampling.

    A row's loss is the mean squared error of its latents to the scene's, plus `evade` times what
    guards say over their thresholds; Adam at `rate`, falling to nothing along a line. A row whose
    loss is at most `near` is done. `advance` is told of each of the `steps`.
    """
    noise = start.clone().requires_grad_()
    optimiser = torch.optim.Adam([noise], lr=rate)
    decay = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, steps)
    least = torch.full((len(scenes),), torch.inf, device=scenes.device)
    best = start.clone()
    with torch.enable_grad(), frozen([family.denoiser]):
        for done in range(steps):
            (left,) = torch.where(least > near)
            if not len(left):
                advance(steps - done)
                break
            asked = [(prompts[row], seeds[row]) for row in left.tolist()]
            sampled = sampling(noise[left], *zip(*asked, strict=True))
            missed = (sampled.latents - scenes[left]).square().flatten(1).mean(1)
            loss = missed + evade * sampled.excess
            (noise.grad,) = torch.autograd.grad(loss.sum(), noise)
            better = left[loss.detach() < least[left]]
            best[better] = noise.detach()[better]
            least[left] = torch.minimum(least[left], loss.detach())
            optimiser.step()
            decay.step()
            advance(1)
    return best
