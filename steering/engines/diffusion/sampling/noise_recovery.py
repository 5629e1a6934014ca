"""The noise that a model draws given images from."""

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
    """`z_T` of clean latents `[rows, channels, height, width]`, one prompt a row: the same shape.

    Of unit variance, as `beginnings.Noise` takes it: drawn with the same prompt and steps at a
    guidance of 1 it gives the latents nearly back, where the scheduler looks back on nothing. No
    guard is asked; `forward` is as in DiffusionEngine. Raises ValueError for what `InvertedImage`
    cannot start from.
    """
    engine = DiffusionEngine(family, capacity=batch, forward=forward)
    initial = Sampler(family.scheduler, family.arrange).schedule(steps).initial
    found = []
    for first in range(0, len(prompts), batch):
        part = slice(first, first + batch)
        starts = [
            ImageStart(prompt, steps=steps, guidance=1.0, beginning=InvertedImage(clean))
            for prompt, clean in zip(prompts[part], latents[part], strict=True)
        ]
        engine.start(starts)
        rows = range(engine.rows)
        while any(engine.inverting(row) for row in rows):
            engine.step()
        found.append(engine.finished(rows) / initial)
        engine.reset()
    return torch.cat(found) if found else latents
