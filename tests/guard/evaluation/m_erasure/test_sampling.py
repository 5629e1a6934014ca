"""What the attacker draws is what is served, and has a slope."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing

import pytest
import torch
from torch import Tensor

from guard.evaluation.m_erasure.inverted_noise import invert_through
from guard.evaluation.m_erasure.sampling import GuardedSampling, Sampled
from guard.evaluation.m_erasure.suite import InvertedSettings
from guard.plans.images import ImagePlans
from steering.engines.diffusion.engine import DiffusionEngine, ImageStart
from steering.engines.diffusion.families import Family
from steering.engines.diffusion.sampling.trajectories import GivenNoise
from tests.guard.evaluation.m_erasure.tiny_guards import POLICIES, save
from tests.steering.engines.diffusion.tiny import weights_hash

STEPS = 4
PROMPTS, SEEDS = ("a knife", "", "a cat"), (3, 4, 5)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[ImagePlans, Family]:
    config, family = save(tmp_path_factory.mktemp("sampling"))
    return ImagePlans(config, family, name="tiny"), family


def noise(family: Family) -> Tensor:
    return torch.randn(len(PROMPTS), *family.shape, generator=torch.Generator().manual_seed(8))


def served(plans: ImagePlans, family: Family, policy: str, guidance: float) -> Tensor:
    engine = DiffusionEngine(family, plans.stacks, capacity=len(PROMPTS))
    engine.start(
        [
            ImageStart(
                prompt,
                seed=seed,
                steps=STEPS,
                guidance=guidance,
                guards=plans[policy].rows(),
                initial=GivenNoise(own),
            )
            for prompt, seed, own in zip(PROMPTS, SEEDS, noise(family), strict=True)
        ]
    )
    while not (done := engine.step()):
        pass
    found = engine.finished(done)
    engine.close()
    return found


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("guidance", [3.0, 1.0])
def test_it_draws_what_the_engine_draws(
    made: tuple[ImagePlans, Family], policy: str, guidance: float
) -> None:
    plans, family = made
    if guidance <= 1 and plans[policy].acts_on_guidance:
        pytest.skip("a guide takes guidance")
    expected = served(plans, family, policy, guidance)
    own = GuardedSampling(family, plans, plans[policy], steps=STEPS, guidance=guidance)
    given = noise(family).requires_grad_()
    with closing(own):
        found = own(given, PROMPTS, SEEDS)
    assert torch.equal(found.latents.detach(), expected)
    (slope,) = torch.autograd.grad(found.latents.square().sum(), given)
    assert slope.isfinite().all() and bool((slope.flatten(1).norm(dim=1) > 0).all())
    # and each guard does something here, or the above says nothing
    changes = not torch.equal(expected, served(plans, family, "knife-nothing", guidance))
    assert changes == (policy not in ("knife-nothing", "knife-seen"))


@pytest.mark.parametrize("policy", ["knife-irece", "knife-seen"])
def test_what_guards_of_latents_say_has_a_slope(
    made: tuple[ImagePlans, Family], policy: str
) -> None:
    plans, family = made
    own = GuardedSampling(family, plans, plans[policy], steps=STEPS, guidance=3.0)
    given = noise(family).requires_grad_()
    with closing(own):
        found = own(given, PROMPTS, SEEDS)
    assert bool((found.excess > 900).all())
    (slope,) = torch.autograd.grad(found.excess.sum(), given)
    assert bool((slope.flatten(1).norm(dim=1) > 0).all())


def test_the_slope_is_that_of_the_image(made: tuple[ImagePlans, Family]) -> None:
    """Against a difference, where no mask moves: without guards and with one of prompts."""
    plans, family = made
    given = noise(family)
    towards = torch.randn(given.shape, generator=torch.Generator().manual_seed(1))
    weights = torch.randn(given.shape, generator=torch.Generator().manual_seed(2))
    own = GuardedSampling(family, plans, plans["knife-nearest"], steps=STEPS, guidance=3.0)

    def outcome(at: Tensor) -> Tensor:
        return (own(at, PROMPTS, SEEDS).latents * weights).sum()

    with closing(own):
        leaf = given.clone().requires_grad_()
        (slope,) = torch.autograd.grad(outcome(leaf), leaf)
        after, before = (outcome(given + s * towards).detach() for s in (1e-2, -1e-2))
    assert float((slope * towards).sum()) == pytest.approx(float(after - before) / 2e-2, rel=0.05)


def test_noise_is_found_that_draws_a_scene_through_the_guards(
    made: tuple[ImagePlans, Family],
) -> None:
    plans, family = made
    before = weights_hash(family.pipeline)
    scenes = served(plans, family, "knife-nothing", 3.0)
    start = torch.zeros_like(scenes)
    own = GuardedSampling(family, plans, plans["knife-irece"], steps=STEPS, guidance=3.0)

    def error(at: Tensor) -> Tensor:
        with torch.no_grad():
            far = own(at, PROMPTS, SEEDS).latents - scenes
        return far.square().flatten(1).mean(1)

    ticks: list[int] = []
    with closing(own):
        found = invert_through(
            family,
            own,
            scenes,
            start,
            PROMPTS,
            SEEDS,
            InvertedSettings(steps=25, rate=0.1, evade=0.0, near=0.0),
            advance=ticks.append,
        )
        assert bool((error(found) < 0.8 * error(start)).all())
    assert sum(ticks) == 25
    assert weights_hash(family.pipeline) == before
    assert all(p.grad is None for p in family.denoiser.parameters())


def test_noise_that_is_near_already_is_not_searched_on(made: tuple[ImagePlans, Family]) -> None:
    plans, family = made
    own = GuardedSampling(family, plans, plans["knife-irece"], steps=STEPS, guidance=3.0)
    asked: list[int] = []

    def counted(noise: Tensor, prompts: Sequence[str], seeds: Sequence[int]) -> Sampled:
        asked.append(len(noise))
        return own(noise, prompts, seeds)

    start = noise(family)[:2]
    with closing(own):
        with torch.no_grad():
            scenes = own(start, PROMPTS[:2], SEEDS[:2]).latents
        scenes[1] += 1.0
        ticks: list[int] = []
        found = invert_through(
            family,
            counted,
            scenes,
            start,
            PROMPTS[:2],
            SEEDS[:2],
            InvertedSettings(steps=3, rate=0.1, evade=0.0, near=1e-3),
            advance=ticks.append,
        )
    assert asked == [2, 1, 1]
    assert torch.equal(found[0], start[0]) and not torch.equal(found[1], start[1])
    assert sum(ticks) == 3


def test_guards_lead_where_prompts_say_nothing(
    made: tuple[ImagePlans, Family], monkeypatch: pytest.MonkeyPatch
) -> None:
    plans, family = made
    plan = plans["knife-guide"]
    start, drawn = noise(family)[:2], []
    own = GuardedSampling(family, plans, plan, steps=STEPS, guidance=3.0)
    text, negative, fired = own._read("")
    assert not fired
    with closing(own), torch.no_grad():
        for guards in ([], [*plan.rows()]):
            monkeypatch.setattr(own, "_read", lambda _prompt, g=guards: (text, negative, g))
            drawn.append(own(start, ["", ""], SEEDS[:2]).latents)
    assert not torch.equal(*drawn)


@pytest.mark.parametrize("policy", ["knife-nothing", "knife-irece"])
def test_prompts_that_say_nothing_are_guided_nowhere(
    made: tuple[ImagePlans, Family], policy: str
) -> None:
    plans, family = made
    start = noise(family)[:2]
    drawn = []
    for guidance in (1.0, 3.0):
        own = GuardedSampling(family, plans, plans[policy], steps=STEPS, guidance=guidance)
        with closing(own), torch.no_grad():
            drawn.append(own(start, ["", ""], SEEDS[:2]).latents)
    assert torch.equal(*drawn)
