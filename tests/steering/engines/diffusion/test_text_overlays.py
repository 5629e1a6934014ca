"""Overlays on text encoders: one changed encoder encodes all texts of a request."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from steering.engines.diffusion.attachment import PipelineAttachment
from steering.engines.diffusion.engine import DiffusionEngine, ImageStart
from steering.engines.diffusion.families import Family
from steering.images.projection import Overlay, component_of, path_of
from tests.steering.engines.diffusion import tiny
from tests.steering.engines.diffusion.guards import carried
from tests.steering.engines.diffusion.overlays import OverlaidGuards
from tests.steering.engines.diffusion.running import stacked
from tests.steering.engines.diffusion.test_attachment import call, quiet

NAMES = ("emoji", "stable diffusion", "stable diffusion xl", "pixart", "flux, not distilled")


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def overlay(family: Family) -> Overlay:
    """Rank 2, on every fourth linear layer of each encoder."""
    generator = torch.Generator().manual_seed(3)
    layers = [
        (f"{component}:{path}", module)
        for component, encoder in family.encoders.items()
        for path, module in encoder.named_modules()
        if type(module) is torch.nn.Linear and "projection" not in path
    ][::4]
    return Overlay(
        {name: [name] for name, _ in layers},
        {name: 0.3 * torch.randn(2, m.in_features, generator=generator) for name, m in layers},
        {name: 0.3 * torch.randn(2, m.out_features, generator=generator) for name, m in layers},
    )


def edited(name: str) -> Family:
    """The family with the overlay in the weights of its encoders."""
    family = tiny.built(name)
    change = overlay(family)
    for layer in change.writes:
        module: Any = family.encoders[component_of(layer)].get_submodule(path_of(layer))
        module.weight.data += change.writes[layer].T @ change.reads[layer]
    return family


def guards(family: Family) -> OverlaidGuards:
    return OverlaidGuards([overlay(family)], "g")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("negative", ["", "a banana"])
def test_an_image_is_that_of_the_edited_encoder(name: str, negative: str) -> None:
    """At a guidance over 1, where the empty or the negative prompt counts too."""
    family = tiny.shared(name)
    start = {"prompt": "a knife", "negative_prompt": negative, "seed": 1, "steps": 3}

    def images(family: Family, *stacks: Any, **more: Any) -> Tensor:
        engine = DiffusionEngine(family, stacked(*stacks), capacity=2)
        engine.start([ImageStart(**start, guidance=3.0, **more), ImageStart("a cat", steps=3)])
        while len(done := engine.step()) < 2:
            pass
        latents = engine.finished(done)
        engine.close()
        return latents

    bare, expected = images(family), images(edited(name))
    guarded = images(family, guards(family), guards=(carried("g"),))
    assert (expected[0] - bare[0]).abs().max() > 1e-3 * bare[0].abs().max()
    difference = (guarded[0] - expected[0]).abs().max()
    assert difference <= 1e-4 * expected[0].abs().max()
    assert torch.equal(guarded[1], bare[1])


@pytest.mark.parametrize("name", NAMES)
def test_a_callers_pipeline_does_the_same(name: str) -> None:
    family = tiny.shared(name)
    options: dict[str, Any] = {"negative_prompt": ["a banana", "a table"]}
    if name == "flux, not distilled":
        options["true_cfg_scale"] = 2.0
    expected = call(edited(name), ["a knife", "a cat"], **options)
    attachment = PipelineAttachment(family, stacked(guards(family)), [carried("g")], quiet)
    try:
        guarded = call(family, ["a knife", "a cat"], **options)
        assert all(row["g"].fired for row in map(attachment.readings, range(2)))
    finally:
        attachment.remove()
    assert (guarded - expected).abs().max() <= 1e-4 * expected.abs().max()
    bare = call(family, ["a knife", "a cat"], **options)
    assert (bare - expected).abs().max() > 1e-3 * bare.abs().max()
