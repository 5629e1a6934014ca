"""Altered portraits: the same for the same seed, of the same size, recognisable."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from guard.evaluation.mllmu.transforms import TRANSFORMS, transformed


def _face(colour: tuple[int, int, int] = (200, 60, 30), side: int = 48) -> NDArray[np.uint8]:
    y, x = np.mgrid[:side, :side]
    image = np.full((side, side, 3), 240, np.uint8)
    image[(x - side / 2) ** 2 + (y - side / 2) ** 2 < (side / 3) ** 2] = colour
    return image


@pytest.mark.parametrize("name", TRANSFORMS)
def test_an_altered_portrait_is_another_image_of_the_same_size(name: str) -> None:
    image, other = _face(), _face((10, 60, 200))
    before = image.copy()
    first = transformed(name, image, other, seed=3)
    assert first.shape == image.shape and first.dtype == np.uint8
    assert np.array_equal(first, transformed(name, image, other, seed=3))
    assert np.array_equal(image, before)
    assert not np.array_equal(first, image)
    assert any(
        not np.array_equal(first, transformed(name, image, other, seed=seed))
        for seed in range(4, 9)
    )


@pytest.mark.parametrize("name", ["crop", "noise", "screen"])
def test_the_person_is_still_in_the_middle(name: str) -> None:
    image = _face()
    altered = transformed(name, image, image, seed=1)
    middle = altered[20:28, 20:28].astype(float).mean((0, 1))
    assert np.abs(middle - (200, 60, 30)).max() < 60


def test_beside_shows_both_in_either_order() -> None:
    image, other = _face((200, 60, 30)), _face((10, 60, 200))
    reds = set()
    for seed in range(8):
        altered = transformed("beside", image, other, seed).astype(float)
        left, right = altered[24, 12, 0], altered[24, 36, 0]
        reds.add((left > 150, right > 150))
    assert reds == {(True, False), (False, True)}


def test_styles_are_few_levels_grey_or_edges() -> None:
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    kinds = set()
    for seed in range(12):
        altered = transformed("style", image, image, seed)
        grey = bool((altered == altered[..., :1]).all())
        kinds.add("grey" if grey else len(np.unique(altered)))
    assert kinds == {"grey", 4}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_images_of_any_shape(name: str) -> None:
    image = np.random.default_rng(0).integers(0, 256, (17, 5, 3), dtype=np.uint8)
    other = np.zeros((3, 40, 3), np.uint8)
    assert transformed(name, image, other, seed=0).shape == image.shape
