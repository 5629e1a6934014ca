"""UCE's closed form against the paper's equation, and guards from artifacts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from steering.images.conditioning import Conditioning
from steering.methods import uce
from steering.methods.fitted import FittedGuard
from steering.methods.uce import Moments, change, counterparts, low_rank

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
    delta = WEIGHT @ change(MOMENTS, keep=KEEP, ridge=RIDGE)
    torch.testing.assert_close(delta, edited() - WEIGHT, atol=1e-10, rtol=0)


def test_at_full_rank_the_overlay_is_exact_and_at_less_it_keeps_the_reported_share() -> None:
    whole = change(MOMENTS, keep=KEEP, ridge=RIDGE)
    lift, reads, share = low_rank(MOMENTS, keep=KEEP, ridge=RIDGE, rank=32)
    # there are no more directions than states
    assert lift.shape == (WIDTH, 4) and reads.shape == (4, WIDTH) and share == pytest.approx(1.0)
    torch.testing.assert_close(lift @ reads, whole, atol=1e-10, rtol=0)
    root = torch.linalg.cholesky(
        MOMENTS.erased + KEEP * MOMENTS.kept + RIDGE * torch.eye(WIDTH).double()
    )
    for rank in (1, 2, 3):
        lift, reads, share = low_rank(MOMENTS, keep=KEEP, ridge=RIDGE, rank=rank)
        lost = ((whole - lift @ reads) @ root).square().sum() / (whole @ root).square().sum()
        assert share == pytest.approx(1.0 - float(lost)) and 0.3 < share < 1.0


def test_an_edit_that_changes_nothing_is_refused() -> None:
    same = Moments(MOMENTS.erased, MOMENTS.kept, torch.zeros(WIDTH, WIDTH).double())
    with pytest.raises(ValueError, match="are the same"):
        low_rank(same, keep=KEEP, ridge=RIDGE, rank=4)


@pytest.mark.parametrize(
    ("instead", "expected"),
    [
        # a begin and an end mark, and nothing between
        ([1, 1, 0, 0, 0, 0], [[0, 1, 1, 1, 1, 0], [0, 1, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0]]),
        ([1, 1, 1, 1, 0, 0], [[0, 1, 2, 3, 3, 0], [0, 3, 0, 0, 0, 0], [3, 0, 0, 0, 0, 0]]),
        # padded on the left
        ([0, 0, 0, 1, 1, 1], [[3, 4, 5, 5, 5, 0], [3, 5, 0, 0, 0, 0], [5, 0, 0, 0, 0, 0]]),
        ([0, 0, 0, 0, 0, 0], None),
    ],
)
def test_tokens_map_to_the_tokens_at_their_positions(instead: list[int], expected: Any) -> None:
    mask = torch.tensor([[1, 1, 1, 1, 1, 0], [1, 1, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0]]).bool()
    positions = counterparts(mask, torch.tensor(instead).bool())
    assert expected is None or positions.tolist() == expected
    assert positions.shape == mask.shape


def guard(name: str = "u", *, gated: bool = True, **changed: Any) -> FittedGuard:
    tensors = {
        "reads.0": torch.ones(2, WIDTH).numpy(),
        "writes.block.to_k": torch.ones(2, 5).numpy(),
        "writes.block.to_v": torch.ones(2, 6).numpy(),
        "weights.text": torch.eye(1, 4)[0].numpy(),
    }
    settings = {"groups": {"0": ["block.to_k", "block.to_v"]}, "streams": ["text"]}
    settings |= {"gated": gated, "bias": 0.25} | changed
    return FittedGuard(name, tensors, settings)


def test_the_score_is_that_of_the_gate_or_one_without_a_gate() -> None:
    guards = uce.stack([guard("g"), guard("o", gated=False)])
    states = torch.zeros(3, 2, 4)
    states[0, :, 0], states[2, 1, 3] = 2.0, torch.nan
    text = Conditioning({"text": states}, {"text": torch.ones(3, 2).bool()})
    scores = guards.sense(text)
    assert scores[:2].tolist() == [[2.25, 1.0], [0.25, 1.0]] and scores[2].isnan().all()
    acted = guards.act(text, scores > 0, scores, scores)
    assert acted.text is text and not acted.steps.any() and acted.score.isnan().all()
    assert [overlay.groups for overlay in guards.overlays] == [
        {"0": ("block.to_k", "block.to_v")}
    ] * 2


def test_an_ungated_guard_needs_no_gate_in_its_artifact() -> None:
    ungated = guard(gated=False)
    bare = {name: values for name, values in ungated.tensors.items() if name != "weights.text"}
    guards = uce.stack([FittedGuard("u", bare, ungated.settings)])
    text = Conditioning({"text": torch.zeros(1, 2, 4)}, {"text": torch.ones(1, 2).bool()})
    assert guards.sense(text).tolist() == [[1.0]]


@pytest.mark.parametrize("groups", [None, {}, ["block.to_k"], {"0": "block.to_k"}, {"0": []}])
def test_invalid_groups_are_named(groups: Any) -> None:
    with pytest.raises(ValueError, match="guard u: groups must have a list of names for each"):
        uce.stack([guard(groups=groups)])


def test_a_layer_without_a_tensor_is_named() -> None:
    with pytest.raises(ValueError, match=r"guard u: has no tensor 'writes\.block\.to_q'"):
        uce.stack([guard(groups={"0": ["block.to_q"]})])


def test_guards_on_different_layers_can_be_stacked() -> None:
    # the overlays are stacked by the seam, not by the method
    assert len(uce.stack([guard("a"), guard("b", groups={"0": ["block.to_k"]})]).overlays) == 2
