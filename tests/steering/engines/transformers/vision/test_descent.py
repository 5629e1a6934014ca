"""Projected gradient descent on pixels: whole levels, within the bounds, the lowest loss met."""

from __future__ import annotations

import torch
from torch import Tensor

from steering.engines.transformers.vision.descent import Bounds, descended

CLEAN = torch.tensor([100.0, 3.0, 254.0]).view(1, 1, 1, 3).expand(2, 1, 1, 3).contiguous()


def _towards(target: Tensor) -> object:
    return lambda pixels: ((pixels - target) ** 2).sum((1, 2, 3))


def test_pixels_move_towards_a_small_loss_as_far_as_the_bounds() -> None:
    target = torch.tensor([200.0, -50.0, 300.0])
    found = descended(CLEAN, _towards(target), Bounds(16, 5, 10))  # type: ignore[arg-type]
    # 16 levels up; 3 down to black; 1 up to white
    assert found[0].flatten().tolist() == [116.0, 0.0, 255.0]


def test_the_lowest_loss_is_kept_of_each_image() -> None:
    # the first image is best as it is; the second one two steps away, which the last ones leave
    target = torch.stack([CLEAN[0], CLEAN[1] + torch.tensor([10.0, 0, 0])])
    found = descended(CLEAN, _towards(target), Bounds(16, 5, 7))  # type: ignore[arg-type]
    assert torch.equal(found[0], CLEAN[0])
    assert found[1].flatten().tolist() == [110.0, 3.0, 254.0]


def test_a_seed_begins_elsewhere_and_levels_are_whole() -> None:
    def flat(pixels: Tensor) -> Tensor:
        return (pixels * 0).sum((1, 2, 3))

    bounds = Bounds(7.5, 1.3, 0)
    first, second, other = (descended(CLEAN, flat, bounds, seed) for seed in (1, 1, 2))
    assert torch.equal(first, second) and not torch.equal(first, other)
    assert torch.equal(first, first.round()) and float((first - CLEAN).abs().max()) <= 7.5
