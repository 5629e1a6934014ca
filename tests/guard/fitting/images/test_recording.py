"""Recorded trajectories, beside images that are only generated."""

from __future__ import annotations

import pytest
import torch

from guard.fitting.images import recording
from guard.fitting.images.recording import record_trajectories
from guard.models.images import ImageModel
from steering.engines.diffusion.families import Family
from steering.engines.diffusion.seams.attention import text_keys
from steering.images.latent import AttentionProbe, InspectionSchedule
from tests.steering.engines.diffusion import tiny

PROMPTS = ["a knife", "a cat", "a red dog"]


def image_model_of(name: str) -> ImageModel:
    return ImageModel(tiny.built(name), name=name, architecture="Tiny")


def probes_of(family: Family, count: int) -> list[AttentionProbe]:
    keys = text_keys(family, family.encode(["knife"]), 500.0)
    probes = [
        AttentionProbe(layer, head, layer_keys[:2, head], layer_keys[2:4, head])
        for layer, layer_keys in keys.items()
        for head in range(layer_keys.shape[1])
    ]
    return probes[:count]


@pytest.mark.parametrize("name", ["emoji", "flux", "wan"])
def test_they_are_those_of_the_images_that_the_model_generates(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording, "BATCH", 2)
    image_model = image_model_of(name)
    counts: list[int] = []
    recorded = record_trajectories(
        image_model,
        PROMPTS,
        InspectionSchedule(1.0, 3),
        probes_of(image_model.family, 2),
        steps=4,
        guidance=2.0,
        seed=5,
        advance=counts.append,
    )
    latents = image_model.generate_latents(PROMPTS, steps=4, guidance=2.0, seed=5)
    shape = image_model.family.shape
    assert recorded.estimates.shape == (3, 3, *shape) and recorded.maps.shape == (3, 2, *shape[1:])
    torch.testing.assert_close(recorded.estimates[:, -1], latents, rtol=1e-3, atol=1e-3)
    # earlier estimates are of another image, and every image has its own maps
    assert not torch.allclose(recorded.estimates[:, 0], latents, rtol=1e-2, atol=1e-2)
    assert recorded.maps.flatten(2).std(2).min() > 0
    assert not torch.allclose(recorded.maps[0], recorded.maps[1], atol=1e-3)
    assert counts == [2, 1]
    assert not any(module._forward_hooks for module in image_model.family.denoiser.modules())


def test_a_map_is_the_mean_of_deviations_over_the_inspections() -> None:
    image_model = image_model_of("emoji")
    reads = probes_of(image_model.family, 2)
    settings = {"steps": 3, "guidance": 2.0, "seed": 1}
    recorded = record_trajectories(
        image_model, PROMPTS[:2], InspectionSchedule(1.0, 3), reads, **settings
    )  # type: ignore[arg-type]
    last = record_trajectories(
        image_model, PROMPTS[:2], InspectionSchedule(1.0, 1), reads, **settings
    )  # type: ignore[arg-type]
    assert last.estimates.shape[1] == 1
    torch.testing.assert_close(
        last.estimates[:, 0], recorded.estimates[:, -1], rtol=1e-4, atol=1e-4
    )
    assert not torch.allclose(last.maps, recorded.maps, atol=1e-3)
    # one look's map has a mean of zero and a deviation of one
    flat = last.maps.flatten(2)
    torch.testing.assert_close(flat.mean(2), torch.zeros(2, 2), rtol=0, atol=1e-4)
    torch.testing.assert_close(flat.std(2, correction=0), torch.ones(2, 2), rtol=1e-3, atol=1e-3)
    # the mean of several that differ has less
    assert recorded.maps.flatten(2).std(2, correction=0).max() < 0.999


def test_without_probes_there_are_only_estimates() -> None:
    image_model = image_model_of("emoji")
    recorded = record_trajectories(
        image_model, PROMPTS, InspectionSchedule(0.95, 9), [], steps=3, guidance=1.0, seed=0
    )
    assert recorded.maps.shape == (3, 0, *image_model.family.shape[1:])
    assert len(recorded.estimates) == 3


def test_hooks_are_removed_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    image_model = image_model_of("emoji")

    def fails(_rows: int) -> None:
        raise RuntimeError("somebody has had enough")

    with pytest.raises(RuntimeError, match="had enough"):
        record_trajectories(
            image_model,
            PROMPTS,
            InspectionSchedule(1.0, 1),
            probes_of(image_model.family, 1),
            steps=2,
            guidance=1.0,
            seed=0,
            advance=fails,
        )
    assert not any(module._forward_hooks for module in image_model.family.denoiser.modules())
