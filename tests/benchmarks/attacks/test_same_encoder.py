"""The attacker's text encoder is the served one; otherwise the attack would be on another model."""

from __future__ import annotations

import pytest
import torch

from benchmarks.attacks.target import Target
from tests.steering.engines.diffusion.tiny import built


@pytest.mark.parametrize("name", ["emoji", "stable diffusion"])
def test_states_are_those_of_the_family(name: str) -> None:
    family = built(name)
    target = Target(family.pipeline)
    prompts = ["a red knife", "the cat on"]
    conditioning = target.encode(torch.tensor([target.content(prompts[0])]))
    expected = family.encode(prompts[:1])
    assert torch.equal(conditioning.states["text"], expected.states["text"])
    assert torch.equal(conditioning.masks["text"], expected.masks["text"])
    content = torch.tensor(target.content(prompts[1]))
    slope = target.gradient(content, lambda text: text.states["text"].square().sum())
    assert slope.shape == (3, len(target.tokenizer))
    assert slope.isfinite().all() and slope.norm() > 0


def test_latents_are_those_that_the_family_decodes() -> None:
    family = built("emoji")
    target = Target(family.pipeline)
    size = (2, 3, family.height, family.width)
    images = torch.rand(size, generator=torch.Generator().manual_seed(0))
    latents = target.latents(images)
    assert tuple(latents.shape) == (2, *family.shape)
