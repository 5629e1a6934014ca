from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from classifiers.probes import ProbeRecipe, Probes, train_probe

RECIPE = ProbeRecipe()


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def planted(count: int, *, places: int = 9, width: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Pictures of which every second one shows the concept, along coordinate 0, at one place."""
    states = draw(count, places, width, seed=seed)
    shown = torch.arange(count) % 2 == 0
    for row in range(0, count, 2):
        states[row, (row // 2) % places, 0] += 6.0
    return states, shown


def test_logits_are_the_equation_s() -> None:
    probes, states = Probes(draw(3, 5), draw(3, seed=1)), draw(4, 7, 5, seed=2)
    found = probes(states)
    assert found.shape == (4, 3) and len(probes) == 3
    for row in range(4):
        for probe in range(3):
            said = [
                math.exp(float(place @ probes.weight[probe] + probes.bias[probe]))
                for place in states[row]
            ]
            assert float(found[row, probe]) == pytest.approx(math.log(sum(said)), abs=1e-4)


def test_one_place_that_shows_it_is_enough_wherever_it_is() -> None:
    probe = Probes(torch.tensor([[1.0, 0.0]]), torch.tensor([-8.0]))
    plain = torch.zeros(1, 16, 2)
    shown = plain.repeat(16, 1, 1)
    shown[range(16), range(16), 0] = 12.0
    nothing, found = probe(plain), probe(shown)
    # a mean over places would stay under zero: 12 / 16 - 8
    assert float(nothing) < -5 and bool((found > 3.9).all())
    assert torch.allclose(found, found[:1].expand(16, 1))


def test_logits_of_any_size_are_finite() -> None:
    probe = Probes(torch.ones(1, 2), torch.zeros(1))
    assert bool(probe(torch.full((1, 4, 2), 1e4)).isfinite().all())


def test_slopes_reach_the_states() -> None:
    states = draw(2, 3, 4).requires_grad_()
    (slope,) = torch.autograd.grad(Probes(draw(1, 4), torch.zeros(1))(states).sum(), states)
    assert bool((slope.abs().sum((1, 2)) > 0).all())


@pytest.mark.parametrize(
    ("weight", "bias"),
    [
        (torch.zeros(4), torch.zeros(4)),
        (torch.zeros(2, 4), torch.zeros(3)),
        (torch.zeros(2, 4), torch.zeros(2, 1)),
        (torch.zeros(1, 2, 4), torch.zeros(1)),
    ],
)
def test_shapes_that_do_not_belong_together_are_refused(weight: Tensor, bias: Tensor) -> None:
    with pytest.raises(ValueError, match=r"\[probes, width\]"):
        Probes(weight, bias)


def test_training_finds_what_is_planted_at_a_single_place() -> None:
    probe = train_probe(*planted(200), RECIPE)
    states, shown = planted(200, seed=5)
    said = probe(states)[:, 0]
    right = ((said > 0) == shown).float().mean()
    assert probe.weight.shape == (1, 6) and right > 0.95
    others = probe.weight[0, 1:].abs().max()
    assert float(probe.weight[0, 0]) > 4 * float(others)


def test_standardising_is_folded_into_the_probe() -> None:
    """Other units and another origin of every coordinate are the same pictures: each step of the
    training is the same, and so is what the folded probe says."""
    states, shown = planted(80)
    scale, shift = torch.tensor([1e-2, 5.0, 30.0, 1.0, 0.3, 100.0]), 10 * draw(6, seed=3)
    moved = states * scale + shift
    plain, other = (train_probe(each, shown, RECIPE) for each in (states, moved))
    assert torch.allclose(plain(states), other(moved), atol=1e-2)
    # where it was not folded, one and the same weight would come out
    assert torch.allclose(other.weight * scale, plain.weight, rtol=1e-2, atol=1e-3)


def test_a_coordinate_that_never_changes_is_no_trouble() -> None:
    states, shown = planted(40)
    states[..., 3] = 7.0
    said = train_probe(states, shown, RECIPE)(states)
    assert bool(said.isfinite().all())


def test_half_precision_states_are_taught_in_single() -> None:
    states, shown = planted(60)
    rough = train_probe(states.half(), shown, RECIPE)
    assert rough.weight.dtype == rough.bias.dtype == torch.float32
    assert torch.equal(rough.weight, train_probe(states.half().float(), shown, RECIPE).weight)


def test_rare_labels_count_as_much_as_common_ones() -> None:
    """With one picture of twenty the concept is found all the same."""
    states, _ = planted(200)
    shown = torch.zeros(200, dtype=torch.bool)
    shown[[0, 2, 4, 6, 8]] = True
    common = shown | (torch.arange(200) % 2 == 1)
    said = train_probe(states[common], shown[common], RECIPE)(states[common])[:, 0]
    assert bool((said[shown[common]] > 0).all())


def test_training_is_the_same_every_time_and_leaves_no_slopes() -> None:
    states, shown = planted(60)
    once, again = (train_probe(states, shown, RECIPE) for _ in range(2))
    assert torch.equal(once.weight, again.weight) and torch.equal(once.bias, again.bias)
    assert not once.weight.requires_grad and not once.bias.requires_grad


def test_the_penalty_keeps_a_probe_from_leaning_on_small_differences() -> None:
    states, shown = planted(60)
    states[..., 0] = draw(60, 9, seed=9)
    plain, held = (
        train_probe(states, shown, replace(RECIPE, penalty=penalty)) for penalty in (0.0, 0.3)
    )
    assert float(held.weight.norm()) < 0.5 * float(plain.weight.norm())
