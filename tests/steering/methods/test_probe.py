"""Probes as a guard: stacked, averaged, and honest about what is not a number."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from classifiers.probes import Probes
from steering.methods.embedding import EmbeddingGuard
from steering.methods.probe import stack
from steering.methods.screens import PICTURE_SCREENS, SCREENS

WIDTH = 5


def fitted(name: str, members: int, *, seed: int = 0, width: int = WIDTH) -> EmbeddingGuard:
    """As an artifact of `guard fit probe` gives it."""
    rng = np.random.default_rng(seed)
    tensors = {
        "weight.picture": rng.standard_normal((members, width)).astype("f4"),
        "bias.picture": rng.standard_normal(members).astype("f4"),
    }
    return EmbeddingGuard(name, tensors, {"threshold": 0.5, "strength": 1.0})


def seen(rows: int = 4, *, seed: int = 0) -> Tensor:
    return torch.randn(rows, 6, WIDTH, generator=torch.Generator().manual_seed(seed))


def alone(guard: EmbeddingGuard, states: Tensor) -> Tensor:
    """The mean of the guard's members, one at a time."""
    weight, bias = (torch.tensor(guard.tensors[f"{part}.picture"]) for part in ("weight", "bias"))
    said = [Probes(w[None], b[None])(states) for w, b in zip(weight, bias, strict=True)]
    return torch.cat(said, 1).mean(1)


def test_the_method_looks_at_pictures_and_not_at_prompts() -> None:
    assert PICTURE_SCREENS["probe"] is stack and "probe" not in SCREENS


def test_each_guard_says_the_mean_of_its_own_members() -> None:
    # numbers of members differ, so that none can be taken for a neighbour's
    guards = [fitted("a", 3), fitted("b", 1, seed=1), fitted("c", 2, seed=2)]
    screen, states = stack(guards), seen()
    assert list(screen.names) == ["a", "b", "c"]
    scores = screen.sense(states)
    assert scores.shape == (4, 3)
    for column, guard in enumerate(guards):
        assert torch.allclose(scores[:, column], alone(guard, states), atol=1e-5)


def test_company_does_not_change_a_guard() -> None:
    guards, states = [fitted("a", 2), fitted("b", 2, seed=1)], seen()
    together = stack(guards).sense(states)
    for column, guard in enumerate(guards):
        assert torch.allclose(together[:, [column]], stack([guard]).sense(states), atol=1e-6)


@pytest.mark.parametrize("fault", [torch.nan, torch.inf, -torch.inf])
def test_a_row_that_is_not_finite_says_nothing_and_the_others_what_they_did(fault: float) -> None:
    screen, states = stack([fitted("a", 2), fitted("b", 1, seed=1)]), seen()
    sound = screen.sense(states)
    states[2, 4, 1] = fault
    found = screen.sense(states)
    assert bool(found[2].isnan().all())
    others = [0, 1, 3]
    assert torch.equal(found[others], sound[others])


def test_a_fault_that_the_probes_do_not_look_at_counts_too() -> None:
    """A coordinate of weight zero, or a place that loses against another, would hide it."""
    guard = fitted("a", 1)
    guard.tensors["weight.picture"][:, 1] = 0.0
    states = seen(2)
    states[0, 0, 1] = torch.inf
    assert stack([guard]).sense(states).isnan()[:, 0].tolist() == [True, False]


def test_states_of_half_precision_are_read_in_single() -> None:
    screen, states = stack([fitted("a", 2)]), seen().half()
    found = screen.sense(states)
    assert found.dtype == torch.float32
    assert torch.equal(found, screen.sense(states.float()))


def test_slopes_go_through() -> None:
    states = seen().requires_grad_()
    (slope,) = torch.autograd.grad(stack([fitted("a", 2)]).sense(states).sum(), states)
    assert bool((slope.flatten(1).norm(dim=1) > 0).all())


def test_different_widths_cannot_be_stacked() -> None:
    with pytest.raises(ValueError, match="different widths"):
        stack([fitted("a", 2), fitted("b", 2, width=WIDTH + 1)])


@pytest.mark.parametrize("key", ["weight.picture", "bias.picture"])
def test_a_missing_tensor_is_named(key: str) -> None:
    guard = fitted("g", 2)
    tensors = {name: tensor for name, tensor in guard.tensors.items() if name != key}
    with pytest.raises(ValueError, match=f"guard g: has no tensor '{key}'"):
        stack([fitted("a", 2), EmbeddingGuard("g", tensors, guard.settings)])


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"weight.picture": np.zeros(WIDTH, "f4")}, "must have 2 dimensions"),
        ({"bias.picture": np.zeros((2, 1), "f4")}, "must have 1 dimensions"),
        ({"weight.picture": np.zeros((0, WIDTH), "f4")}, "must have 2 dimensions"),
        ({"bias.picture": np.zeros(3, "f4")}, "guard g: weight and bias"),
    ],
)
def test_tensors_that_do_not_hold_are_told_of(changed: dict[str, Any], said: str) -> None:
    guard = fitted("g", 2)
    with pytest.raises(ValueError, match=said):
        stack([EmbeddingGuard("g", {**guard.tensors, **changed}, guard.settings)])
