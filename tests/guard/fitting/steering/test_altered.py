"""Altered images: of the same size, a part, or squeezed onto another image."""

from __future__ import annotations

import random

import numpy as np

from guard.fitting.steering.altered import ACROSS, DOWN, PART, altered

RED = np.full((60, 80, 3), (250, 0, 0), np.uint8)
BLUE = np.full((20, 20, 3), (0, 0, 250), np.uint8)


def test_an_image_is_cut_or_stands_on_another_one() -> None:
    shares = []
    for seed in range(200):
        image = altered(RED, [BLUE], random.Random(seed))
        assert image.shape == RED.shape and image.dtype == np.uint8
        shares.append(float((image[..., 0] > 125).mean()))
    pasted = np.array([share for share in shares if share < 1])
    assert 60 < len(pasted) < 140
    low, high = ACROSS[0] * DOWN[0], ACROSS[1] * DOWN[1]
    assert low - 0.02 <= pasted.min() < low + 0.1 and high - 0.1 < pasted.max() <= high + 0.02


def test_without_other_images_it_is_always_a_part() -> None:
    ramp = np.broadcast_to(np.linspace(0, 255, 100)[None, :, None], (50, 100, 3)).astype(np.uint8)
    for seed in range(50):
        image = altered(ramp, [], random.Random(seed))
        seen = (int(image.max()) - int(image.min())) / 255
        assert PART[0] - 0.05 <= seen <= PART[1] + 0.05


def test_the_same_seed_gives_the_same_image() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
    first, again = (altered(noise, [BLUE], random.Random(5)) for _ in range(2))
    assert np.array_equal(first, again)
