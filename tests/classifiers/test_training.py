"""Trained heads find their concept, and attacks during training make them harder to mislead."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from classifiers.heads import Heads, fresh
from classifiers.training import Recipe, attacked, train_heads

RECIPE = Recipe(members=2, hidden=8, steps=300, batch=32, rate=1e-2, radius=0.1)


def prompts(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Random tokens; one token of an unsafe prompt points in the concept's direction."""
    random = torch.Generator().manual_seed(seed)
    states = 3.0 + torch.randn(count, 5, 12, generator=random)
    unsafe = torch.arange(count) % 2 == 0
    at = torch.randint(5, (count,), generator=random)
    states[torch.arange(count)[unsafe], at[unsafe], 0] += 8.0
    return states, unsafe


def test_heads_find_the_concept_in_new_prompts() -> None:
    heads = train_heads(*prompts(400, 0), RECIPE)
    states, unsafe = prompts(200, 1)
    right = (heads(states) > 0) == unsafe[:, None]
    assert right.float().mean(0).min() > 0.95


def test_the_members_differ_and_a_seed_repeats_them() -> None:
    once, again = (train_heads(*prompts(100, 0), replace(RECIPE, steps=5)) for _ in range(2))
    assert torch.equal(once.hidden, again.hidden)
    assert not torch.equal(once.hidden[0], once.hidden[1])


def test_an_attack_stays_in_its_radius_and_raises_the_loss() -> None:
    states, unsafe = prompts(40, 2)
    heads = fresh(1, 12, queries=2, hidden=8, seed=3)
    labels = unsafe.float()[:, None]
    moved = attacked(heads, states, labels, replace(RECIPE, radius=0.1, attacks=3))
    reach = (moved - states).flatten(1).norm(dim=1) / states.flatten(1).norm(dim=1)
    assert reach.max() <= 0.1 + 1e-4

    def loss(x: Tensor) -> Tensor:
        return torch.nn.functional.binary_cross_entropy_with_logits(heads(x), labels)

    assert loss(moved) > loss(states)


def test_training_on_attacks_makes_heads_harder_to_mislead() -> None:
    states, unsafe = prompts(400, 0)
    held_out, held_out_unsafe = prompts(100, 4)
    labels = held_out_unsafe.float()[:, None].expand(-1, 2)
    strong = replace(RECIPE, radius=0.25, attacks=4)
    errors = []
    for recipe in (replace(RECIPE, attacks=0, noise=0.0), strong):
        heads = train_heads(states, unsafe, recipe)
        moved = attacked(heads, held_out, labels, strong)
        errors.append(float(((heads(moved) > 0) != held_out_unsafe[:, None]).float().mean()))
    assert errors[1] < errors[0]


def test_training_goes_on_from_heads() -> None:
    states, unsafe = prompts(100, 0)
    heads = train_heads(states, unsafe, replace(RECIPE, steps=20))
    # a step of no length changes nothing, however the states are standardised
    still = train_heads(
        2 * states + 1, unsafe, replace(RECIPE, steps=1, rate=0.0, members=1), start=heads
    )
    for before, after in zip(heads.parts().values(), still.parts().values(), strict=True):
        assert torch.allclose(before, after, atol=1e-4)
    further = train_heads(states, unsafe, replace(RECIPE, steps=20), start=heads)

    def loss(trained: Heads) -> Tensor:
        labels = unsafe.float()[:, None].expand(-1, 2)
        return torch.nn.functional.binary_cross_entropy_with_logits(trained(states), labels)

    assert loss(further) < loss(heads)


def test_rows_are_sampled_by_their_weights() -> None:
    states, unsafe = prompts(200, 0)
    # half of the labels are wrong, and have no weight
    wrong = torch.arange(200) < 100
    labels = torch.where(wrong, ~unsafe, unsafe)
    heads = train_heads(states, labels, RECIPE, weights=(~wrong).float())
    held_out, held_out_unsafe = prompts(100, 1)
    right = (heads(held_out) > 0) == held_out_unsafe[:, None]
    assert right.float().mean(0).min() > 0.95
