"""Moving states within subspaces, against one state at a time in numpy."""

from __future__ import annotations

import numpy as np
import torch

from steering.methods.subspaces import due_first, pooled, principal, shifted, stacked
from tests.steering.methods.random_guards import basis


def test_a_pooled_state_is_the_mean_of_the_real_tokens_only() -> None:
    states = torch.tensor([[[1.0], [3.0], [torch.nan]], [[5.0], [torch.inf], [2.0]]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert pooled(states, mask).tolist() == [[2.0], [5.0]]


def test_principal_directions_are_orthonormal_and_begin_with_the_shared_one() -> None:
    rng = np.random.default_rng(0)
    shared = rng.standard_normal(8)
    samples = torch.tensor(shared + 0.1 * rng.standard_normal((5, 8)))
    directions = principal(samples, 3)
    torch.testing.assert_close(directions @ directions.T, torch.eye(3))
    assert abs(float(directions[0] @ torch.tensor(shared / np.linalg.norm(shared)).float())) > 0.98
    assert len(principal(torch.ones(4, 8), 3)) == 1  # the samples span one direction


def test_stacked_fills_up_with_zeros() -> None:
    whole = stacked([None, torch.ones(1, 2), torch.full((3, 2), 2.0)])
    assert whole.sum(2).tolist() == [[0, 0, 0], [2, 0, 0], [4, 4, 4]]


def test_due_guards_come_first_in_their_order() -> None:
    due = torch.tensor([[False, True, False, True], [True, False, False, False]])
    order, real = due_first(due)
    assert order[0].tolist() == [1, 3] and order[1, 0] == 0
    assert real.tolist() == [[True, True], [True, False]]


def test_shift_reaches_the_requested_coordinates_by_the_smallest_move() -> None:
    rng = np.random.default_rng(1)
    bases = rng.standard_normal((2, 3, 8))
    bases[1, 2] = 0.0  # filling
    states, shift = rng.standard_normal((2, 4, 8)), rng.standard_normal((2, 4, 3))
    shift[1, :, 2] = 0.0
    tensors = (torch.tensor(part).float() for part in (states, bases, shift))
    moved = shifted(*tensors, rtol=1e-5)
    for row in range(2):
        for token in range(4):
            least, *_ = np.linalg.lstsq(bases[row], shift[row, token], rcond=None)
            np.testing.assert_allclose(moved[row, token], states[row, token] + least, atol=1e-4)


def test_nearly_equal_directions_with_different_shifts_get_their_mean() -> None:
    rng = np.random.default_rng(2)
    first = basis(1, 8, rng)[0]
    second = first + 1e-3 * rng.standard_normal(8)
    second /= np.linalg.norm(second)
    bases = torch.tensor(np.stack([first, second])[None]).float()
    moved = shifted(torch.zeros(1, 1, 8), bases, torch.tensor([[[1.0, 3.0]]]), rtol=0.1)
    np.testing.assert_allclose(bases[0] @ moved[0, 0], [2.0, 2.0], atol=1e-2)
    assert float(moved.norm()) < 2.1
