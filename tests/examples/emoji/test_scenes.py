"""Scenes keep to their grid, and captions name their objects."""

from __future__ import annotations

import numpy as np

from examples.emoji.captions import caption, phrases
from examples.emoji.scenes import CELL, OBJECT, SIZE, Scene, draw, loose, render
from examples.emoji.sprites import SIDE, STYLES, names, sprites


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_no_phrase_is_in_two_splits_or_means_two_concepts() -> None:
    all_phrases = [
        phrase
        for concept in range(len(names()))
        for split in ("train", "validation", "test")
        for phrase in phrases(concept, split)
    ]
    assert len(set(all_phrases)) == len(all_phrases)
    assert len(names()) >= 40


def test_a_seed_repeats_a_scene_and_its_caption() -> None:
    once, again = (draw(2, rng(5)) for _ in range(2))
    assert once == again
    assert caption(once, rng(1)) == caption(again, rng(1))


def test_objects_stand_on_the_grid_inside_the_image_and_do_not_overlap() -> None:
    for seed in range(200):
        objects = draw(2 + seed % 2, rng(seed)).objects
        assert all(placed.x % CELL == placed.y % CELL == 0 for placed in objects)
        assert all(min(placed.box) >= 0 and max(placed.box) <= SIZE for placed in objects)
        covered = np.zeros((SIZE, SIZE), int)
        for left, top, right, bottom in (placed.box for placed in objects):
            covered[top:bottom, left:right] += 1
        assert covered.max() == 1


def test_loose_scenes_stay_inside_the_image_too() -> None:
    for seed in range(100):
        for placed in loose(3, rng(seed)).objects:
            assert min(placed.box) >= 0 and max(placed.box) <= SIZE


def test_an_image_differs_from_its_background_in_the_boxes_alone() -> None:
    scene = draw(2, rng(3))
    changed = (render(scene) != render(Scene((), scene.style, scene.background))).any(-1)
    for left, top, right, bottom in (placed.box for placed in scene.objects):
        assert changed[top:bottom, left:right].mean() > 0.1
        changed[top:bottom, left:right] = False
    assert not changed.any()


def test_a_caption_names_every_object_with_a_training_phrase() -> None:
    for seed in range(200):
        scene = draw(1 + seed % 3, rng(seed))
        text = caption(scene, rng(seed + 1000))
        for placed in scene.objects:
            assert any(phrase in text for phrase in phrases(placed.concept, "train"))


def test_the_sheet_has_an_image_of_every_concept_in_both_styles() -> None:
    images = sprites(OBJECT)
    assert images.shape == (len(STYLES), len(names()), OBJECT, OBJECT, 4)
    assert (images[..., 3].mean((2, 3)) > 0.1).all()
    # premultiplied: transparent pixels have no colour, up to a little ringing of the filter
    assert (images[..., :3] <= images[..., 3:] + 0.1).all()
    assert sprites(SIDE).shape[2] == SIDE
