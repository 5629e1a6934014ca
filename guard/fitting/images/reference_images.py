"""Real images to learn from: what a guard of the latents would see of them on their way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from guard.data.concept import Concept
from guard.data.prompts import SceneImage, read_rows
from guard.errors import DataError
from guard.evaluation.m_erasure.scenes import latents_of
from guard.models.images import ImageModel
from steering.engines.diffusion.families import Family
from steering.engines.diffusion.sampling.estimates import Estimates, estimates_of
from steering.engines.diffusion.sampling.samplers import Sampler, Schedule
from steering.images.conditioning import Conditioning
from steering.images.latent import InspectionSchedule

_AT_ONCE = 16


@dataclass(frozen=True)
class ReferenceImages:
    """Clean latents `[images, channels, height, width]`, and which of them show the concept."""

    latents: Tensor
    shown: Tensor


def read_given(painter: ImageModel, concept: Concept, path: Path) -> ReferenceImages:
    """The images of a JSON Lines file, whose paths are relative to it.

    An image shows the concept where its row names it, by the last part of the concept's name.
    Raises DataError where none does, or all do.
    """
    label = concept.name.rpartition("/")[2]
    rows = [
        row.model_copy(update={"image": str(path.parent / row.image)})
        for row in read_rows(path, SceneImage)
    ]
    shown = torch.tensor([label in (row.concept, *row.kept) for row in rows])
    if not shown.any() or shown.all():
        raise DataError(f"{path}: images with {label!r} and without it are wanted, not of one kind")
    return ReferenceImages(latents_of(painter.family, rows).cpu(), shown)


@torch.no_grad()
def given_estimates(
    painter: ImageModel,
    latents: Tensor,
    looks: InspectionSchedule,
    *,
    steps: int,
    seed: int,
    tick: Callable[[int], None] = lambda _images: None,
) -> Tensor:
    """What each look sees of images under noise, `[images, looks, channels, ...]`.

    The network is asked without a prompt. What it makes of an image that it has not drawn is not
    quite what it draws: that is what there is to be learned.
    """
    family = painter.family
    schedule = Sampler(family.scheduler, family.arrange).schedule(steps)
    tables = estimates_of(family.scheduler, schedule)
    at = sorted(looks.among(tables.level.tolist(), tables.whole.tolist()))
    plain = family.unconditional([""])
    draw = torch.Generator().manual_seed(seed)
    found = []
    for part in latents.split(_AT_ONCE):  # type: ignore[no-untyped-call]
        clean, rows = family.packed(part.to(family.device)), len(part)
        noise = torch.randn(clean.shape, generator=draw).to(clean)
        text = plain.expand(rows)
        each = [
            noised_estimate(family, schedule, tables, step, clean, noise, text).cpu() for step in at
        ]
        found.append(torch.stack(each, 1))
        tick(rows)
    return torch.cat(found)


def noised_estimate(
    family: Family,
    schedule: Schedule,
    tables: Estimates,
    step: int,
    clean: Tensor,
    noise: Tensor,
    text: Conditioning,
) -> Tensor:
    """x̂_0 of `clean [rows, ...]` under the noise of an evaluation, `[rows, channels, ...]`.

    `clean` and `noise` are packed, `text` has a row for each.
    """
    sample = schedule.signal[step] * clean + schedule.noise[step] * noise
    said = family.predict(
        sample * schedule.input_scale[step],
        schedule.timestep[step].repeat(len(clean)).to(clean.device),
        text,
        torch.ones(len(clean), device=clean.device),
    ).float()
    return family.unpacked(tables.sample[step] * sample + tables.output[step] * said)
