"""Classifiers of latents as guards: stacked, averaged, and NaN where latents are not finite."""

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
"""The shapes of an image and of a video."""


def net_of(members: int, seed: int) -> LatentClassifiers:
    return random_net(members, CHANNELS, seed=seed)


def fitted(
    name: str, members: int, *, seed: int = 0, net: LatentClassifiers | None = None
) -> FittedGuard:
    """A guard as in an artifact of `guard fit latents`."""
    tensors = tensors_of(net or net_of(members, seed))
    return FittedGuard(name, tensors, {"threshold": 0.5, "strength": 1.0})


def three() -> LatentClassifierGuards:
    # the numbers of members differ, so that a mix-up of guards shows
    return stack([fitted("a", 3), fitted("b", 1, seed=1), fitted("c", 2, seed=2)])


def random_latents(rows: int = 4, *, shape: Sequence[int] = (8, 8), seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(rows, CHANNELS, *shape, generator=random)


def test_the_method_reads_images_and_not_prompts() -> None:
    assert METHODS["latents"].seam == "output"


@pytest.mark.parametrize("shape", SHAPES)
def test_the_score_of_a_guard_is_the_mean_of_its_members(shape: Sequence[int]) -> None:
    guards, latents = three(), random_latents(shape=shape)
    assert list(guards.names) == ["a", "b", "c"] and guards.channels == CHANNELS
    scores = guards.sense(latents, [0, 1, 2])
    assert scores.shape == (4, 3)
    for column, (members, seed) in enumerate([(3, 0), (1, 1), (2, 2)]):
        net = net_of(members, seed)
        alone = torch.cat([net.select([member])(latents) for member in range(members)], 1)
        assert torch.allclose(scores[:, column], alone.mean(1), atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("columns", [[0], [1], [2], [0, 2], [2, 0], [1, 2], [2, 1, 0], [1, 0, 2]])
def test_scores_of_some_guards_are_those_among_all_in_any_order(
    columns: list[int], shape: Sequence[int]
) -> None:
    guards, latents = three(), random_latents(shape=shape)
    scores = guards.sense(latents, columns)
    assert scores.shape == (4, len(columns))
    assert torch.allclose(scores, guards.sense(latents, [0, 1, 2])[:, columns], atol=1e-5)


def test_only_the_networks_of_the_chosen_columns_are_run(monkeypatch: pytest.MonkeyPatch) -> None:
    guards, ran = three(), list[int]()
    call = LatentClassifiers.votes

    def counted(net: LatentClassifiers, latents: Tensor) -> Tensor:
        ran.append(len(net))
        return call(net, latents)

    monkeypatch.setattr(LatentClassifiers, "votes", counted)
    for columns in ([0, 1, 2], [2], [0, 1]):
        guards.sense(random_latents(), columns)
    assert ran == [6, 2, 4]


def test_other_guards_do_not_change_a_score() -> None:
    guards, latents = [fitted("a", 2), fitted("b", 2, seed=1)], random_latents()
    together = stack(guards).sense(latents, [0, 1])
    for column, guard in enumerate(guards):
        alone = stack([guard]).sense(latents, [0])
        assert torch.allclose(together[:, [column]], alone, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("fault", [torch.nan, torch.inf, -torch.inf])
def test_a_row_that_is_not_finite_has_no_score_and_the_others_keep_theirs(
    fault: float, shape: Sequence[int]
) -> None:
    guards, latents = three(), random_latents(shape=shape)
    sound = guards.sense(latents, [0, 1, 2])
    latents[2, 4].view(-1)[-1] = fault
    scores = guards.sense(latents, [0, 1, 2])
    assert bool(scores[2].isnan().all())
    others = [0, 1, 3]
    assert torch.equal(scores[others], sound[others])


def test_a_row_that_is_not_finite_has_no_score_whatever_the_networks_return(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # kernels differ in how they treat infinity
    monkeypatch.setattr(
        LatentClassifiers, "votes", lambda net, latents: torch.ones(len(latents), len(net), 1, 1)
    )
    latents = random_latents(2)
    latents[0, 1, 0, 0] = torch.inf
    scores = stack([fitted("a", 2)]).sense(latents, [0])
    assert scores.isnan()[:, 0].tolist() == [True, False]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_latents_of_another_precision_are_read_in_single(dtype: torch.dtype) -> None:
    guards, latents = three(), random_latents().to(dtype)
    scores = guards.sense(latents, [1, 2])
    assert scores.dtype == torch.float32
    assert torch.equal(scores, guards.sense(latents.float(), [1, 2]))


@pytest.mark.parametrize("columns", [[0, 1, 2], [2]])
def test_scores_are_differentiable(columns: list[int]) -> None:
    latents = random_latents().requires_grad_()
    (slope,) = torch.autograd.grad(three().sense(latents, columns).sum(), latents)
    assert bool((slope.flatten(1).norm(dim=1) > 0).all())


def test_latents_of_another_number_of_channels_are_refused() -> None:
    with pytest.raises(ValueError, match="latents must have 5 channels, not"):
        three().sense(random_latents()[:, :4], [0])


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


def test_a_network_that_ends_too_early_is_refused() -> None:
    guard = fitted("g", 2)
    tensors = {name: value for name, value in guard.tensors.items() if "2." not in name}
    with pytest.raises(ValueError, match="guard g: layer 1 of a classifier must be"):
        stack([FittedGuard("g", tensors, guard.settings)])


@pytest.mark.parametrize(
    ("changed", "message"),
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
def test_invalid_tensors_are_refused(changed: dict[str, Any], message: str) -> None:
    guard = fitted("g", 2)
    with pytest.raises(ValueError, match=message):
        stack([FittedGuard("g", {**guard.tensors, **changed}, guard.settings)])
