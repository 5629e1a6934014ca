"""The noise from which a model generates given images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from steering.engines.diffusion.engine import DiffusionEngine, ImageStart
from steering.engines.diffusion.families import Family
from steering.engines.diffusion.sampling.samplers import Sampler
from steering.engines.diffusion.sampling.trajectories import InvertedImage


@torch.no_grad()
def recovered_noise(
    family: Family,
    latents: Tensor,
    prompts: Sequence[str],
    *,
    steps: int,
    batch: int = 16,
    forward: int | str | None = "auto",
) -> Tensor:
    """The noise `z_T` of clean latents `[rows, channels, height, width]`, in the same shape.

    The noise has unit variance, as `GivenNoise` takes it: generation from it with the same prompt
    (one a row) and steps at a guidance of 1 nearly gives the latents back, with a scheduler of one
    step. No guard runs; `forward` is as in DiffusionEngine. Raises ValueError for latents or steps
    that `InvertedImage` refuses.
    """
    engine = DiffusionEngine(family, capacity=batch, forward=forward)
    initial = Sampler(family.scheduler, family.arrange).schedule(steps).initial
    noise = []
    for first in range(0, len(prompts), batch):
        rows_of_batch = slice(first, first + batch)
        starts = [
            ImageStart(prompt, steps=steps, guidance=1.0, initial=InvertedImage(clean))
            for prompt, clean in zip(prompts[rows_of_batch], latents[rows_of_batch], strict=True)
        ]
        engine.start(starts)
        rows = range(engine.rows)
        while any(engine.inverting(row) for row in rows):
            engine.step()
        noise.append(engine.finished(rows) / initial)
        engine.reset()
    return torch.cat(noise) if noise else latents
