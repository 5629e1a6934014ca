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


def drawn(rows: int, seed: int) -> Tensor:
    return torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(seed)).double()


ERASED, STEAD, KEPT = drawn(4, 0), drawn(4, 1), drawn(9, 2)
WEIGHT = drawn(OUT, 3)
MOMENTS = Moments(ERASED.T @ ERASED, KEPT.T @ KEPT, (STEAD - ERASED).T @ ERASED)


def edited() -> Tensor:
    """The equation, term by term."""
    left, right = RIDGE * WEIGHT, RIDGE * torch.eye(WIDTH).double()
    for c, stead in zip(ERASED, STEAD, strict=True):
        left = left + torch.outer(WEIGHT @ stead, c)
        right = right + torch.outer(c, c)
    for c in KEPT:
        left = left + KEEP * torch.outer(WEIGHT @ c, c)
        right = right + KEEP * torch.outer(c, c)
    return left @ torch.linalg.inv(right)


def test_the_change_is_that_of_the_paper() -> None:
    delta = WEIGHT @ change(MOMENTS, keep=KEEP, ridge=RIDGE)
    torch.testing.assert_close(delta, edited() - WEIGHT, atol=1e-10, rtol=0)


def test_at_full_rank_the_overlay_is_exact_and_at_less_it_keeps_the_share_it_says() -> None:
    whole = change(MOMENTS, keep=KEEP, ridge=RIDGE)
    lift, reads, share = low_rank(MOMENTS, keep=KEEP, ridge=RIDGE, rank=32)
    # there are no more directions than states
    assert lift.shape == (WIDTH, 4) and reads.shape == (4, WIDTH) and share == pytest.approx(1.0)
    torch.testing.assert_close(lift @ reads, whole, atol=1e-10, rtol=0)
    seen = torch.linalg.cholesky(
        MOMENTS.erased + KEEP * MOMENTS.kept + RIDGE * torch.eye(WIDTH).double()
    )
    for rank in (1, 2, 3):
        lift, reads, share = low_rank(MOMENTS, keep=KEEP, ridge=RIDGE, rank=rank)
        left = ((whole - lift @ reads) @ seen).square().sum() / (whole @ seen).square().sum()
        assert share == pytest.approx(1.0 - float(left)) and 0.3 < share < 1.0


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
def test_tokens_go_to_those_in_their_place(instead: list[int], expected: Any) -> None:
    mask = torch.tensor([[1, 1, 1, 1, 1, 0], [1, 1, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0]]).bool()
    found = counterparts(mask, torch.tensor(instead).bool())
    assert expected is None or found.tolist() == expected
    assert found.shape == mask.shape


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


def test_a_guard_asks_its_gate_or_none_at_all() -> None:
    screen = uce.stack([guard("g"), guard("o", gated=False)])
    states = torch.zeros(3, 2, 4)
    states[0, :, 0], states[2, 1, 3] = 2.0, torch.nan
    text = Conditioning({"text": states}, {"text": torch.ones(3, 2).bool()})
    said = screen.sense(text)
    assert said[:2].tolist() == [[2.25, 1.0], [0.25, 1.0]] and said[2].isnan().all()
    acted = screen.act(text, said > 0, said, said)
    assert acted.text is text and not acted.steps.any() and acted.score.isnan().all()
    assert [own.groups for own in screen.overlays] == [{"0": ("block.to_k", "block.to_v")}] * 2


def test_an_ungated_guard_needs_no_gate_in_its_artifact() -> None:
    own = guard(gated=False)
    bare = {name: values for name, values in own.tensors.items() if name != "weights.text"}
    screen = uce.stack([FittedGuard("u", bare, own.settings)])
    text = Conditioning({"text": torch.zeros(1, 2, 4)}, {"text": torch.ones(1, 2).bool()})
    assert screen.sense(text).tolist() == [[1.0]]


@pytest.mark.parametrize("groups", [None, {}, ["block.to_k"], {"0": "block.to_k"}, {"0": []}])
def test_groups_that_are_none_are_named(groups: Any) -> None:
    with pytest.raises(ValueError, match="guard u: groups must have a list of names for each"):
        uce.stack([guard(groups=groups)])


def test_a_layer_that_stands_in_no_tensor_is_named() -> None:
    with pytest.raises(ValueError, match=r"guard u: has no tensor 'writes\.block\.to_q'"):
        uce.stack([guard(groups={"0": ["block.to_q"]})])


def test_two_guards_on_other_layers_hold_each_for_itself() -> None:
    # stacking them is for the seam, which says so
    assert len(uce.stack([guard("a"), guard("b", groups={"0": ["block.to_k"]})]).overlays) == 2
