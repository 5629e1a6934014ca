"""An attacker generates the images of the engine, and its first guess is differentiable."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor

from benchmarks.attacks.generating import EmbeddingGenerator
from steering.engines.diffusion.engine import DiffusionEngine, ImageStart
from steering.engines.diffusion.families import Family
from tests.steering.engines.diffusion import tiny

PROMPTS, SEEDS = ["a knife", "a cat on the table"], (4, 9)
STEPS, GUIDANCE = 4, 3.0
FAMILIES = ["emoji", "stable diffusion", "stable diffusion xl"]
"""Of Stable Diffusion's shape, with three samplers and both kinds of prediction."""


@cache
def built(name: str) -> Family:
    return tiny.built(name)


def engine_latents(family: Family, steps: int, guidance: float) -> Tensor:
    """Final latents of every prompt with every seed, from the engine."""
    engine = DiffusionEngine(family, capacity=4)
    engine.start(
        [
            ImageStart(prompt, seed=seed, steps=steps, guidance=guidance)
            for prompt in PROMPTS
            for seed in SEEDS
        ]
    )
    while not engine.step():
        pass
    return engine._slots.latents.clone()


def close(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, atol=1e-4 * float(other.abs().max()))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(("steps", "guidance"), [(4, 3.0), (7, 1.5)])
def test_latents_are_those_of_the_engine(name: str, steps: int, guidance: float) -> None:
    family = built(name)
    with torch.no_grad():
        text = family.encode(PROMPTS)
    latents = EmbeddingGenerator(family, steps=steps, guidance=guidance).finished(text, SEEDS)
    assert close(latents, engine_latents(family, steps, guidance))


@pytest.mark.parametrize("name", FAMILIES)
def test_with_one_step_the_first_guess_is_the_image(name: str) -> None:
    family = built(name)
    generator = EmbeddingGenerator(family, steps=1, guidance=GUIDANCE)
    with torch.no_grad():
        text = family.encode(PROMPTS)
        guess = generator.first_guess(text, SEEDS)
    assert close(guess, generator.finished(text, SEEDS))


@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_of_the_first_guess_reach_the_text(name: str) -> None:
    family = built(name)
    generator = EmbeddingGenerator(family, steps=STEPS, guidance=GUIDANCE)
    with torch.no_grad():
        text = family.encode(PROMPTS)
    stream = next(iter(text.states))
    states = text.states[stream].clone().requires_grad_()
    weights = torch.randn(family.noise(SEEDS).shape, generator=torch.Generator().manual_seed(1))

    def value(states: Tensor) -> Tensor:
        guess = generator.first_guess(text.with_states({**text.states, stream: states}), SEEDS)
        return (guess[: len(SEEDS)] * weights).sum()  # of the first prompt only

    (slope,) = torch.autograd.grad(value(states), states)
    assert slope[0].norm() > 0 and not bool(slope[1].any())
    towards, small = slope / slope.norm(), 1e-2
    with torch.no_grad():
        after, before = (float(value(states + sign * small * towards)) for sign in (1, -1))
    assert float(slope.norm()) == pytest.approx((after - before) / (2 * small), rel=0.05)
