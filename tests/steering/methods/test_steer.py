"""The closed forms against their definitions, in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from steering.methods.steer import (
    contrast,
    gram,
    hard_gate,
    null_space,
    project,
    soft_gate,
)

WIDTH = 24


def states(count: int, seed: int, width: int = WIDTH) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, width, generator=generator, dtype=torch.float64)


def published_map(d: Tensor, forget: Tensor, basis: Tensor, ridge: float) -> Tensor:
    """`W = d 1ᵀ (P H_f)ᵀ ((P H_f)(P H_f)ᵀ + γ P Pᵀ)⁺`, as printed: columns are tokens."""
    p = torch.eye(len(d), dtype=torch.float64) - basis @ basis.T
    ph = p @ forget.T
    inverse = torch.linalg.pinv(ph @ ph.T + ridge * p @ p.T, rtol=1e-10, hermitian=True)
    target = torch.outer(d, torch.ones(len(forget), dtype=torch.float64))
    return target @ ph.T @ inverse @ p


@given(
    forget=st.integers(1, 40),
    retain=st.integers(1, 60),
    null_share=st.floats(0.1, 0.9),
    ridge=st.sampled_from([1e-3, 1e-1, 1.0, 10.0]),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=40, deadline=None)
def test_rank_one_gate_is_the_published_map(
    forget: int, retain: int, null_share: float, ridge: float, seed: int
) -> None:
    h, d = states(forget, seed), states(1, seed + 1)[0]
    basis = null_space(gram(states(retain, seed + 2)), null_share)
    w = hard_gate(h, basis, ridge)
    published = published_map(d, h, basis, ridge)
    assert torch.allclose(torch.outer(d, w), published, atol=1e-8, rtol=1e-8)


def test_maps_of_k_concepts_sum_to_rank_k() -> None:
    basis = null_space(gram(states(50, 0)), 0.5)
    total = torch.zeros(WIDTH, WIDTH, dtype=torch.float64)
    for k in range(1, 5):
        d, forget = states(1, 10 * k)[0], states(6, 10 * k + 1)
        concept_map = torch.outer(d, hard_gate(forget, basis, 0.1))
        assert torch.allclose(concept_map, published_map(d, forget, basis, 0.1), atol=1e-8)
        total += concept_map
        assert int(torch.linalg.matrix_rank(total)) == k


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.6])
def test_null_space_basis_is_orthonormal_and_has_the_requested_share(share: float) -> None:
    basis = null_space(gram(states(80, 3)), share)
    assert basis.shape == (WIDTH, round(WIDTH * (1 - share)))
    assert torch.allclose(basis.T @ basis, torch.eye(basis.shape[1], dtype=torch.float64))


def test_null_space_keeps_the_directions_of_most_energy() -> None:
    scale = torch.linspace(1.0, 10.0, WIDTH, dtype=torch.float64)
    basis = null_space(torch.diag(scale), 0.5)
    assert torch.allclose((basis**2).sum(1).round(), (scale > scale.median()).double())


def test_hard_gate_is_silent_on_retain_and_one_on_forget() -> None:
    # the retain set spans 10 of 24 directions: a true null space is left
    retain = states(60, 4, width=10) @ states(10, 5)
    basis = null_space(gram(retain), 0.5)
    forget = states(5, 6)
    w = hard_gate(forget, basis, 1e-6)
    assert (retain @ w).abs().max() < 1e-8
    assert torch.allclose(forget @ w, torch.ones(5, dtype=torch.float64), atol=1e-4)


def test_projection_is_idempotent_and_kills_the_basis() -> None:
    basis = null_space(gram(states(60, 7)), 0.4)
    h = states(9, 8)
    once = project(h, basis)
    assert torch.allclose(project(once, basis), once)
    assert (once @ basis).abs().max() < 1e-12


@pytest.mark.parametrize("share", [0.0, 1.0, -0.2, float("nan")])
def test_null_share_must_lie_between_0_and_1(share: float) -> None:
    with pytest.raises(ValueError, match="null_share"):
        null_space(gram(states(5, 9)), share)


@given(seed=st.integers(0, 2**16), ridge=st.floats(1e-4, 1.0), weight=st.floats(0.01, 100.0))
@settings(max_examples=25, deadline=None)
def test_soft_gate_minimises_its_objective(seed: int, ridge: float, weight: float) -> None:
    forget, retain = states(7, seed), states(40, seed + 1)
    w = soft_gate(forget, gram(retain), ridge, weight).requires_grad_()
    gamma = ridge * (retain**2).sum() / WIDTH
    objective = (
        weight * ((forget @ w - 1) ** 2).sum() + ((retain @ w) ** 2).sum() + gamma * (w**2).sum()
    )
    (slope,) = torch.autograd.grad(objective, w)
    assert slope.abs().max() < 1e-8 * (1 + weight)


def test_soft_gate_tends_to_separation_as_ridge_vanishes() -> None:
    retain = states(60, 11, width=10) @ states(10, 12)
    forget = states(5, 13)
    error = []
    for ridge in (1.0, 1e-2, 1e-4, 1e-8):
        w = soft_gate(forget, gram(retain), ridge, 1.0)
        error.append(float((forget @ w - 1).abs().max() + (retain @ w).abs().max()))
    assert error == sorted(error, reverse=True)
    assert error[-1] < 1e-4 < error[0]


def test_contrast_is_the_difference_of_means_position_by_position() -> None:
    erasure, recall = states(6, 14).float().reshape(3, 2, WIDTH), states(8, 15).reshape(4, 2, WIDTH)
    d = contrast(erasure, recall)
    assert d.dtype == torch.float64 and d.shape == (2, WIDTH)
    for position in range(2):
        expected = sum(erasure[:, position].double()) / 3 - sum(recall[:, position]) / 4
        assert torch.allclose(d[position], expected)
