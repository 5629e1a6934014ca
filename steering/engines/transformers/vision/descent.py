"""Images that a gradient changes within bounds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Bounds:
    """How far pixels may move and how fast: by at most `epsilon` grey levels of 255, `step` at a
    time, `steps` times."""

    epsilon: float
    step: float
    steps: int


def descended(
    clean: Tensor, losses: Callable[[Tensor], Tensor], bounds: Bounds, seed: int | None = None
) -> Tensor:
    """Pixels near `clean [images, ...]`, floats in 0..255, for which `losses(pixels)`, `[images]`,
    is small: whole grey levels, those of the lowest loss that was met, for each image.

    Projected gradient descent in the maximum norm (Madry et al., arXiv 1706.06083, equation 1),
    from `clean`, or with a `seed` from a random point within the bounds.
    """
    clean = clean.detach().round().clamp(0, 255)
    low = (clean - bounds.epsilon).clamp(min=0)
    high = (clean + bounds.epsilon).clamp(max=255)
    current = clean
    if seed is not None:
        noise = torch.rand(clean.shape, generator=torch.Generator().manual_seed(seed))
        current = (clean + (2 * noise - 1) * bounds.epsilon).clamp(low, high)
    best = clean
    lowest = torch.full((len(clean),), torch.inf)
    for step in range(bounds.steps + 1):
        # what is compared is an image that can be sent; rounding must not leave the bounds
        whole = torch.where(current > clean, current.floor(), current.ceil()).detach()
        last = step == bounds.steps
        with torch.set_grad_enabled(not last):
            tried = whole.requires_grad_(not last)
            loss = losses(tried)
        now = loss.detach().cpu()
        better = (now < lowest).view(-1, *[1] * (clean.ndim - 1))
        best = torch.where(better, tried.detach(), best)
        lowest = torch.minimum(now, lowest)
        if not last:
            (gradient,) = torch.autograd.grad(loss.sum(), tried)
            current = (current - bounds.step * gradient.sign()).clamp(low, high)
    return best
