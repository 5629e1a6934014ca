"""Images that are watched on their way, beside those that are only drawn."""

from __future__ import annotations

import pytest
import torch

from guard.fitting.images import recording
from guard.fitting.images.recording import watch
from guard.models.images import ImageModel
from steering.engines.diffusion.families import Family
from steering.engines.diffusion.seams.attention import text_keys
from steering.images.latent import AttentionProbe, InspectionSchedule
from tests.steering.engines.diffusion import tiny

PROMPTS = ["a knife", "a cat", "a red dog"]


def painter_of(name: str) -> ImageModel:
    return ImageModel(tiny.built(name), name=name, architecture="Tiny")


def reads_of(family: Family, count: int) -> list[AttentionProbe]:
    keys = text_keys(family, family.encode(["knife"]), 500.0)
    every = [
        AttentionProbe(layer, head, own[:2, head], own[2:4, head])
        for layer, own in keys.items()
        for head in range(own.shape[1])
    ]
    return every[:count]


@pytest.mark.parametrize("name", ["emoji", "flux", "wan"])
def test_they_are_those_that_the_painter_draws(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "AT_ONCE", 2)
    painter = painter_of(name)
    told: list[int] = []
    seen = watch(
        painter,
        PROMPTS,
        InspectionSchedule(1.0, 3),
        reads_of(painter.family, 2),
        steps=4,
        guidance=2.0,
        seed=5,
        tick=told.append,
    )
    drawn = painter.draw(PROMPTS, steps=4, guidance=2.0, seed=5)
    shape = painter.family.shape
    assert seen.estimates.shape == (3, 3, *shape) and seen.maps.shape == (3, 2, *shape[1:])
    torch.testing.assert_close(seen.estimates[:, -1], drawn, rtol=1e-3, atol=1e-3)
    # the looks before are of another image, and every image has maps of its own
    assert not torch.allclose(seen.estimates[:, 0], drawn, rtol=1e-2, atol=1e-2)
    assert seen.maps.flatten(2).std(2).min() > 0
    assert not torch.allclose(seen.maps[0], seen.maps[1], atol=1e-3)
    assert told == [2, 1]
    assert not any(module._forward_hooks for module in painter.family.denoiser.modules())


def test_a_map_is_the_mean_of_deviations_over_the_looks() -> None:
    painter = painter_of("emoji")
    reads = reads_of(painter.family, 2)
    how = {"steps": 3, "guidance": 2.0, "seed": 1}
    every = watch(painter, PROMPTS[:2], InspectionSchedule(1.0, 3), reads, **how)  # type: ignore[arg-type]
    last = watch(painter, PROMPTS[:2], InspectionSchedule(1.0, 1), reads, **how)  # type: ignore[arg-type]
    assert last.estimates.shape[1] == 1
    torch.testing.assert_close(last.estimates[:, 0], every.estimates[:, -1], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(last.maps, every.maps, atol=1e-3)
    # one look's map has a mean of zero and a deviation of one
    flat = last.maps.flatten(2)
    torch.testing.assert_close(flat.mean(2), torch.zeros(2, 2), rtol=0, atol=1e-4)
    torch.testing.assert_close(flat.std(2, correction=0), torch.ones(2, 2), rtol=1e-3, atol=1e-3)
    # the mean of several that differ has less
    assert every.maps.flatten(2).std(2, correction=0).max() < 0.999


def test_without_reads_there_are_estimates_alone() -> None:
    painter = painter_of("emoji")
    seen = watch(painter, PROMPTS, InspectionSchedule(0.95, 9), [], steps=3, guidance=1.0, seed=0)
    assert seen.maps.shape == (3, 0, *painter.family.shape[1:])
    assert len(seen.estimates) == 3


def test_the_network_is_let_go_of_whatever_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    painter = painter_of("emoji")

    def fails(_rows: int) -> None:
        raise RuntimeError("somebody has had enough")

    with pytest.raises(RuntimeError, match="had enough"):
        watch(
            painter,
            PROMPTS,
            InspectionSchedule(1.0, 1),
            reads_of(painter.family, 1),
            steps=2,
            guidance=1.0,
            seed=0,
            tick=fails,
        )
    assert not any(module._forward_hooks for module in painter.family.denoiser.modules())
