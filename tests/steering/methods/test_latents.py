"""Classifiers of latents as a guard: stacked, averaged, and honest about what is not a number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from classifiers.latents import LatentClassifiers
from steering.methods import METHODS
from steering.methods.fitted import FittedGuard
from steering.methods.latents import LatentClassifierGuards, stack
from tests.classifiers.nets import random_net, tensors_of

CHANNELS = 5
SHAPES = [(8, 8), (3, 8, 6)]
"""Of an image, and of a video."""


def net_of(members: int, seed: int) -> LatentClassifiers:
    return random_net(members, CHANNELS, seed=seed)


def fitted(
    name: str, members: int, *, seed: int = 0, net: LatentClassifiers | None = None
) -> FittedGuard:
    """As an artifact of `guard fit latents` gives it."""
    tensors = tensors_of(net or net_of(members, seed))
    return FittedGuard(name, tensors, {"threshold": 0.5, "strength": 1.0})


def three() -> LatentClassifierGuards:
    # numbers of members differ, so that none can be taken for a neighbour's
    return stack([fitted("a", 3), fitted("b", 1, seed=1), fitted("c", 2, seed=2)])


def drawn(rows: int = 4, *, shape: Sequence[int] = (8, 8), seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(rows, CHANNELS, *shape, generator=random)


def test_the_method_looks_at_images_and_not_at_prompts() -> None:
    assert METHODS["latents"].seam == "output"


@pytest.mark.parametrize("shape", SHAPES)
def test_each_guard_says_the_mean_of_its_own_members(shape: Sequence[int]) -> None:
    screen, latents = three(), drawn(shape=shape)
    assert list(screen.names) == ["a", "b", "c"] and screen.channels == CHANNELS
    scores = screen.sense(latents, [0, 1, 2])
    assert scores.shape == (4, 3)
    for column, (members, seed) in enumerate([(3, 0), (1, 1), (2, 2)]):
        net = net_of(members, seed)
        alone = torch.cat([net.select([member])(latents) for member in range(members)], 1)
        assert torch.allclose(scores[:, column], alone.mean(1), atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("columns", [[0], [1], [2], [0, 2], [2, 0], [1, 2], [2, 1, 0], [1, 0, 2]])
def test_some_guards_say_what_they_say_among_all_in_any_order(
    columns: list[int], shape: Sequence[int]
) -> None:
    screen, latents = three(), drawn(shape=shape)
    found = screen.sense(latents, columns)
    assert found.shape == (4, len(columns))
    assert torch.allclose(found, screen.sense(latents, [0, 1, 2])[:, columns], atol=1e-5)


def test_only_the_networks_of_those_asked_for_are_run(monkeypatch: pytest.MonkeyPatch) -> None:
    screen, ran = three(), list[int]()
    call = LatentClassifiers.votes

    def counted(net: LatentClassifiers, latents: Tensor) -> Tensor:
        ran.append(len(net))
        return call(net, latents)

    monkeypatch.setattr(LatentClassifiers, "votes", counted)
    for columns in ([0, 1, 2], [2], [0, 1]):
        screen.sense(drawn(), columns)
    assert ran == [6, 2, 4]


def test_company_does_not_change_a_guard() -> None:
    guards, latents = [fitted("a", 2), fitted("b", 2, seed=1)], drawn()
    together = stack(guards).sense(latents, [0, 1])
    for column, guard in enumerate(guards):
        alone = stack([guard]).sense(latents, [0])
        assert torch.allclose(together[:, [column]], alone, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("fault", [torch.nan, torch.inf, -torch.inf])
def test_a_row_that_is_not_finite_says_nothing_and_the_others_what_they_did(
    fault: float, shape: Sequence[int]
) -> None:
    screen, latents = three(), drawn(shape=shape)
    sound = screen.sense(latents, [0, 1, 2])
    latents[2, 4].view(-1)[-1] = fault
    found = screen.sense(latents, [0, 1, 2])
    assert bool(found[2].isnan().all())
    others = [0, 1, 3]
    assert torch.equal(found[others], sound[others])


def test_a_fault_that_is_no_nan_to_the_networks_is_one_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # what kernels make of infinity is their own affair
    monkeypatch.setattr(
        LatentClassifiers, "votes", lambda net, latents: torch.ones(len(latents), len(net), 1, 1)
    )
    latents = drawn(2)
    latents[0, 1, 0, 0] = torch.inf
    found = stack([fitted("a", 2)]).sense(latents, [0])
    assert found.isnan()[:, 0].tolist() == [True, False]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_latents_of_another_precision_are_read_in_single(dtype: torch.dtype) -> None:
    screen, latents = three(), drawn().to(dtype)
    found = screen.sense(latents, [1, 2])
    assert found.dtype == torch.float32
    assert torch.equal(found, screen.sense(latents.float(), [1, 2]))


@pytest.mark.parametrize("columns", [[0, 1, 2], [2]])
def test_slopes_go_through(columns: list[int]) -> None:
    latents = drawn().requires_grad_()
    (slope,) = torch.autograd.grad(three().sense(latents, columns).sum(), latents)
    assert bool((slope.flatten(1).norm(dim=1) > 0).all())


def test_latents_of_another_number_of_channels_are_refused() -> None:
    with pytest.raises(ValueError, match="latents must have 5 channels, not"):
        three().sense(drawn()[:, :4], [0])


@pytest.mark.parametrize(
    "other",
    [
        random_net(2, CHANNELS + 1),
        random_net(2, CHANNELS, hidden=(3, 6)),
        random_net(2, CHANNELS, hidden=(3, 5, 5, 5)),
    ],
)
def test_different_forms_cannot_be_stacked(other: LatentClassifiers) -> None:
    with pytest.raises(ValueError, match="different shapes cannot be stacked"):
        stack([fitted("a", 2), fitted("b", 2, net=other)])


@pytest.mark.parametrize(
    "key", ["weight0.latents", "weight1.latents", "bias0.latents", "bias1.latents", "bias2.latents"]
)
def test_a_missing_tensor_is_named(key: str) -> None:
    guard = fitted("g", 2)
    tensors = {name: tensor for name, tensor in guard.tensors.items() if name != key}
    with pytest.raises(ValueError, match=f"guard g: has no tensor '{key}'"):
        stack([fitted("a", 2), FittedGuard("g", tensors, guard.settings)])


def test_where_there_is_no_tensor_the_first_is_named() -> None:
    with pytest.raises(ValueError, match="guard g: has no tensor 'weight0.latents'"):
        stack([FittedGuard("g", {}, {})])


def test_a_network_that_ends_too_early_is_told_of() -> None:
    guard = fitted("g", 2)
    tensors = {name: value for name, value in guard.tensors.items() if "2." not in name}
    with pytest.raises(ValueError, match="guard g: layer 1 of a classifier must be"):
        stack([FittedGuard("g", tensors, guard.settings)])


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"weight0.latents": np.zeros((2, 3, CHANNELS, 3), "f4")}, "must have 5 dimensions"),
        ({"weight2.latents": np.zeros((2, 1), "f4")}, "must have 5 dimensions"),
        ({"bias1.latents": np.zeros((2, 5, 1), "f4")}, "must have 2 dimensions"),
        ({"weight0.latents": np.zeros((0, 3, CHANNELS, 3, 3), "f4")}, "must have 5 dimensions"),
        ({"weight0.latents": np.zeros((2, 3, CHANNELS, 5, 5), "f4")}, "guard g: layer 0"),
        ({"bias0.latents": np.zeros((3, 3), "f4")}, "guard g: layer 0"),
        ({"weight1.latents": np.zeros((2, 5, 4, 3, 3), "f4")}, "guard g: layer 1"),
        ({"weight2.latents": np.zeros((1, 1, 5, 1, 1), "f4")}, "guard g: layer 2"),
    ],
)
def test_tensors_that_do_not_hold_are_told_of(changed: dict[str, Any], said: str) -> None:
    guard = fitted("g", 2)
    with pytest.raises(ValueError, match=said):
        stack([FittedGuard("g", {**guard.tensors, **changed}, guard.settings)])
