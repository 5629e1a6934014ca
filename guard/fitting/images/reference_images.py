"""Reference images: real images as training data, noised as they would be on a trajectory."""

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

_BATCH = 16


@dataclass(frozen=True)
class ReferenceImages:
    """Clean latents `[images, channels, height, width]`, and which of them show the concept."""

    latents: Tensor
    shown: Tensor


def reference_rows(concept: Concept, path: Path) -> tuple[list[SceneImage], list[bool]]:
    """The rows of a JSON Lines file of images, with paths as they are opened, and which of them
    show the concept.

    An image shows the concept if its row has the last part of the concept's name as `concept` or
    among `kept`. Raises DataError for a file that is missing, and if no image or every image shows
    the concept.
    """
    label = concept.name.rpartition("/")[2]
    rows = [
        row.model_copy(update={"image": str(path.parent / row.image)})
        for row in read_rows(path, SceneImage)
    ]
    if lost := next((row.image for row in rows if not Path(row.image).is_file()), None):
        raise DataError(f"{path}: {lost} is no file: paths are relative to this file")
    shown = [label in (row.concept, *row.kept) for row in rows]
    if not any(shown) or all(shown):
        raise DataError(
            f"{path}: needs images with {label!r} and images without it: add the missing kind"
        )
    return rows, shown


def read_reference_images(image_model: ImageModel, concept: Concept, path: Path) -> ReferenceImages:
    """The images of a file as latents. Raises DataError as `reference_rows` does, and for a file
    that is no image."""
    rows, shown = reference_rows(concept, path)
    return ReferenceImages(latents_of(image_model.family, rows).cpu(), torch.tensor(shown))


@torch.no_grad()
def reference_estimates(
    image_model: ImageModel,
    latents: Tensor,
    inspections: InspectionSchedule,
    *,
    steps: int,
    seed: int,
    advance: Callable[[int], None] = lambda _images: None,
) -> Tensor:
    """The clean estimates of noised images at each inspection, `[images, inspections, ...]`.

    The network runs without a prompt. Its estimates of images that it has not generated differ
    from those of its own, and a classifier has to learn both. `advance` gets the number of images
    after each batch.
    """
    family = image_model.family
    schedule = Sampler(family.scheduler, family.arrange).schedule(steps)
    tables = estimates_of(family.scheduler, schedule)
    inspected = sorted(inspections.among(tables.level.tolist(), tables.whole.tolist()))
    plain = family.unconditional([""])
    generator = torch.Generator().manual_seed(seed)
    estimates = []
    for part in latents.split(_BATCH):  # type: ignore[no-untyped-call]
        clean, rows = family.packed(part.to(family.device)), len(part)
        noise = torch.randn(clean.shape, generator=generator).to(clean)
        text = plain.expand(rows)
        parts = [
            noised_estimate(family, schedule, tables, step, clean, noise, text).cpu()
            for step in inspected
        ]
        estimates.append(torch.stack(parts, 1))
        advance(rows)
    return torch.cat(estimates)


def noised_estimate(
    family: Family,
    schedule: Schedule,
    tables: Estimates,
    step: int,
    clean: Tensor,
    noise: Tensor,
    text: Conditioning,
) -> Tensor:
    """x̂_0 of `clean [rows, ...]` at the noise level of evaluation `step`, `[rows, channels, ...]`.

    `clean` and `noise` are packed; `text` has one row per image.
    """
    sample = schedule.signal[step] * clean + schedule.noise[step] * noise
    prediction = family.predict(
        sample * schedule.input_scale[step],
        schedule.timestep[step].repeat(len(clean)).to(clean.device),
        text,
        torch.ones(len(clean), device=clean.device),
    ).float()
    return family.unpacked(tables.sample[step] * sample + tables.output[step] * prediction)
