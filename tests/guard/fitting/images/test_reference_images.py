"""Reference images: which are read, and their estimates at each inspection."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from guard.errors import DataError
from guard.fitting.images.reference_images import read_reference_images, reference_estimates
from guard.models.images import ImageModel
from steering.engines.diffusion.sampling.estimates import estimates_of
from steering.engines.diffusion.sampling.samplers import Sampler
from steering.images.latent import InspectionSchedule
from tests.guard.fitting.prompts.test_concept_prompts import CONCEPT
from tests.steering.engines.diffusion import tiny

LABEL = CONCEPT.name.rpartition("/")[2]


def image_model() -> ImageModel:
    return ImageModel(tiny.built("emoji"), name="tiny", architecture="Tiny")


def folder(path: Path, rows: list[dict[str, object]], side: int = 32) -> Path:
    for i, row in enumerate(rows):
        pixels = np.random.default_rng(i).integers(0, 255, (side, side, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(path / str(row["picture"]))
    file = path / "scenes.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return file


def test_an_image_shows_the_concept_where_its_row_names_it(tmp_path: Path) -> None:
    file = folder(
        tmp_path,
        [
            {"picture": "a.png", "concept": LABEL},
            {"picture": "b.png", "concept": "cat", "kept": ["dog"]},
            {"picture": "c.png", "concept": "cat", "kept": [LABEL]},
        ],
    )
    references = read_reference_images(image_model(), CONCEPT, file)
    assert references.shown.tolist() == [True, False, True]
    assert references.latents.shape == (3, *image_model().family.shape)


@pytest.mark.parametrize("concept", [LABEL, "cat"])
def test_images_of_one_kind_are_refused(tmp_path: Path, concept: str) -> None:
    file = folder(tmp_path, [{"picture": "a.png", "concept": concept}])
    with pytest.raises(DataError, match="needs images with .* and images without it"):
        read_reference_images(image_model(), CONCEPT, file)


def test_a_file_that_is_no_image_is_named(tmp_path: Path) -> None:
    file = folder(
        tmp_path,
        [{"picture": "a.png", "concept": LABEL}, {"picture": "b.png", "concept": "cat"}],
    )
    (tmp_path / "b.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="b.png"):
        read_reference_images(image_model(), CONCEPT, file)


def test_each_inspection_has_the_network_s_estimate_of_the_noised_image() -> None:
    model, inspections, steps = image_model(), InspectionSchedule(1.0, 3), 6
    family = model.family
    clean = torch.randn(18, *family.shape, generator=torch.Generator().manual_seed(1))
    counts: list[int] = []
    estimates = reference_estimates(
        model, clean, inspections, steps=steps, seed=4, advance=counts.append
    )
    assert estimates.shape == (18, 3, *family.shape) and sum(counts) == 18
    schedule = Sampler(family.scheduler, family.arrange).schedule(steps)
    tables = estimates_of(family.scheduler, schedule)
    inspected = sorted(inspections.among(tables.level.tolist(), tables.whole.tolist()))
    step = inspected[1]
    noise = torch.randn(16, *family.shape, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        sample = schedule.signal[step] * clean[:16] + schedule.noise[step] * noise
        prediction = family.predict(
            sample,
            schedule.timestep[step].repeat(16),
            family.unconditional([""]).expand(16),
            torch.ones(16),
        )
    expected = tables.sample[step] * sample + tables.output[step] * prediction
    torch.testing.assert_close(estimates[:16, 1], expected, rtol=1e-4, atol=1e-4)
    # the last inspection has the least noise
    assert not torch.equal(estimates[:, 0], estimates[:, 2])
