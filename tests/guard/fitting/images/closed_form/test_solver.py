"""The closed form against UCE's equation, and its cut to a rank."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from guard.fitting.images.closed_form.solver import Moments, gram, low_rank, solved

WIDTH, OUT = 12, 7
KEEP, RIDGE = 0.1, 0.1


def random_states(rows: int, seed: int) -> Tensor:
    return torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(seed)).double()


ERASED, REPLACEMENTS, KEPT = random_states(4, 0), random_states(4, 1), random_states(9, 2)
WEIGHT = random_states(OUT, 3)
MOMENTS = Moments(ERASED.T @ ERASED, KEPT.T @ KEPT, (REPLACEMENTS - ERASED).T @ ERASED)


def edited() -> Tensor:
    """The equation, term by term."""
    left, right = RIDGE * WEIGHT, RIDGE * torch.eye(WIDTH).double()
    for c, replacement in zip(ERASED, REPLACEMENTS, strict=True):
        left = left + torch.outer(WEIGHT @ replacement, c)
        right = right + torch.outer(c, c)
    for c in KEPT:
        left = left + KEEP * torch.outer(WEIGHT @ c, c)
        right = right + KEEP * torch.outer(c, c)
    return left @ torch.linalg.inv(right)


def test_the_change_is_that_of_the_paper() -> None:
    delta = WEIGHT @ solved(MOMENTS, keep=KEEP, ridge=RIDGE).change
    torch.testing.assert_close(delta, edited() - WEIGHT, atol=1e-10, rtol=0)


def test_at_full_rank_the_overlay_is_exact_and_at_less_it_keeps_the_reported_share() -> None:
    edit = solved(MOMENTS, keep=KEEP, ridge=RIDGE)
    whole, exact = edit.change, low_rank(edit, 32)
    # there are no more directions than states
    assert exact.lift.shape == (WIDTH, 4) and exact.reads.shape == (4, WIDTH)
    assert exact.share == pytest.approx(1.0)
    torch.testing.assert_close(exact.lift @ exact.reads, whole, atol=1e-10, rtol=0)
    root = torch.linalg.cholesky(
        MOMENTS.erased + KEEP * MOMENTS.kept + RIDGE * torch.eye(WIDTH).double()
    )
    for rank in (1, 2, 3):
        cut = low_rank(edit, rank)
        lost = ((whole - cut.lift @ cut.reads) @ root).square().sum() / (
            whole @ root
        ).square().sum()
        assert cut.share == pytest.approx(1.0 - float(lost)) and 0.3 < cut.share < 1.0


def test_an_edit_that_changes_nothing_is_refused() -> None:
    same = Moments(MOMENTS.erased, MOMENTS.kept, torch.zeros(WIDTH, WIDTH).double())
    with pytest.raises(ValueError, match="are the same"):
        low_rank(solved(same, keep=KEEP, ridge=RIDGE), 4)


def test_states_with_weights_count_as_often() -> None:
    once, weighted = Moments.zeros(WIDTH), Moments.zeros(WIDTH)
    for state, stead, count in zip(ERASED, REPLACEMENTS, (1, 2, 3, 0), strict=True):
        once.erase(state.expand(count, -1), stead.expand(count, -1))
    weighted.erase(ERASED, REPLACEMENTS, torch.tensor([1.0, 2.0, 3.0, 0.0]).double())
    torch.testing.assert_close(weighted.erased, once.erased)
    torch.testing.assert_close(weighted.moved, once.moved)


def test_the_gram_matrix_is_the_sum_over_layers() -> None:
    other = random_states(5, 7)
    expected = torch.cat([WEIGHT, other]).T @ torch.cat([WEIGHT, other])
    torch.testing.assert_close(gram([WEIGHT, other]), expected)
