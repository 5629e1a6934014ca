"""A word that is learned through guards: what its loss has of them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest
import torch
from torch import Tensor

from guard.evaluation.m_erasure.denoising import Noising, Views, bare, denoising_loss
from guard.evaluation.m_erasure.guarded_loss import GuardedLoss, gradients_of, through_guards
from guard.evaluation.m_erasure.learned_words import WORD, TextualInversion, learn
from guard.plans.images import ImagePlans
from steering.engines.diffusion.families import Family
from steering.images.conditioning import Conditioning
from tests.guard.evaluation.m_erasure.tiny_guards import save

PROMPTS = ("a knife", "a cat", "knife knife")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[ImagePlans, Family]:
    config, family = save(tmp_path_factory.mktemp("guarded"))
    return ImagePlans(config, family, name="tiny"), family


def views(family: Family) -> Views:
    latents = family.unpacked(family.noise(range(len(PROMPTS))))
    return Noising(family).views(latents, torch.Generator().manual_seed(0))


def text(family: Family, prompts: Sequence[str] = PROMPTS) -> Conditioning:
    with torch.no_grad():
        return family.encode(prompts)


def loss(made: tuple[ImagePlans, Family], policy: str, evade: float = 0.0) -> Tensor:
    plans, family = made
    with closing(GuardedLoss(family, plans, plans[policy], evade=evade)) as own, torch.no_grad():
        return own(views(family), text(family))


def plain(family: Family, on: Conditioning | None = None) -> Tensor:
    with torch.no_grad():
        return denoising_loss(bare(family), views(family), on or text(family))


def test_rows_are_guarded_as_the_bank_guards_them(made: tuple[ImagePlans, Family]) -> None:
    plans, family = made
    guards = plans["knife-nearest"].prompt_rows()
    given = text(family)
    exact = plans.stacks.prompts.apply(given, [guards] * 3)
    found, seen = through_guards(
        plans.stacks.prompts, guards, given, gradients_of(plans["knife-nearest"])
    )
    assert torch.allclose(found.states["text"], exact.text.states["text"], atol=1e-6)
    fired = [own["knife"].fired for own in exact.readings]
    assert fired == [True, False, True] and [bool(each > 0) for each in seen] == fired
    assert torch.equal(found.states["text"][1], given.states["text"][1])


def test_the_slope_reaches_what_is_guarded(made: tuple[ImagePlans, Family]) -> None:
    plans, family = made
    given = text(family)
    states = given.states["text"].clone().requires_grad_()
    found, seen = through_guards(
        plans.stacks.prompts,
        plans["knife-nearest"].prompt_rows(),
        given.with_states({"text": states}),
        gradients_of(plans["knife-nearest"]),
    )
    for outcome in (found.states["text"].square().sum(), seen.sum()):
        (slope,) = torch.autograd.grad(outcome, states, retain_graph=True)
        assert slope[0].norm() > 0


def test_the_loss_is_that_of_the_guarded_model(made: tuple[ImagePlans, Family]) -> None:
    plans, family = made
    assert torch.equal(loss(made, "knife-nothing"), plain(family))
    guards = plans["knife-nearest"].prompt_rows()
    guarded = plans.stacks.prompts.apply(text(family), [guards] * 3).text
    assert torch.allclose(loss(made, "knife-nearest"), plain(family, guarded), atol=1e-6)
    assert not torch.allclose(loss(made, "knife-nearest"), plain(family), atol=1e-6)


def test_overlays_are_in_it_and_gone_afterwards(made: tuple[ImagePlans, Family]) -> None:
    _, family = made
    before = plain(family)
    assert not torch.allclose(loss(made, "knife-overlay"), before, atol=1e-6)
    assert torch.equal(plain(family), before)


@pytest.mark.parametrize("policy", ["knife-nearest", "knife-guide", "knife-irece", "knife-seen"])
def test_what_guards_say_over_their_thresholds_is_added(
    made: tuple[ImagePlans, Family], policy: str
) -> None:
    plain_, more = loss(made, policy), loss(made, policy, evade=0.5)
    assert float(more) > float(plain_)
    assert torch.equal(loss(made, "knife-nothing", evade=0.5), loss(made, "knife-nothing"))


def test_guards_of_latents_do_not_look_earlier_than_they_would(
    made: tuple[ImagePlans, Family],
) -> None:
    plans, family = made
    given = views(family)
    looks = plans.stacks.latents[0].inspections[0].level
    own = GuardedLoss(family, plans, plans["knife-irece"], evade=1.0)
    estimate = torch.zeros(3, *family.shape)
    early = own._late(estimate, torch.tensor([looks + 0.005, looks, 0.1]))
    assert [bool(each > 0) for each in early] == [False, True, True]
    assert bool((given.level <= 1).all())


def test_views_say_what_an_output_stands_for(made: tuple[ImagePlans, Family]) -> None:
    _, family = made
    latents = family.unpacked(family.noise(range(3)))
    given = Noising(family).views(latents, torch.Generator().manual_seed(0))
    assert torch.allclose(given.estimate(given.truth), latents, atol=1e-3)


def test_a_word_is_learned_through_them(made: tuple[ImagePlans, Family], tmp_path: Path) -> None:
    plans, family = made
    latents = family.unpacked(family.noise(range(3)))
    settings = TextualInversion(start="knife", steps=4, batch=2)
    black = learn(family, latents, settings)
    for policy in ("knife-nearest", "knife-overlay"):
        with closing(GuardedLoss(family, plans, plans[policy], evade=0.1)) as through:
            white = learn(family, latents, settings, loss=through)
        assert not torch.equal(white.vectors, black.vectors), policy
    assert torch.equal(learn(family, latents, settings).vectors, black.vectors)
    assert WORD not in family.readers[0].tokenizer.get_vocab()
