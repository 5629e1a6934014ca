"""Real scenes: emoji pasted on a coloured background, for the training of the model and judges.

A scene has one style, a background and one to three objects on a 16 x 16 grid of cells of 4 pixels,
the grid of the model's latents: an object starts at a cell's corner, so that its latents are
alike at all places.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from examples.emoji.sprites import STYLES, names, sprites

SIZE = 64
CELL = 4
OBJECT = 28
"""Side of an object in pixels."""
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (250, 250, 250),
    "grey": (165, 170, 175),
    "blue": (120, 180, 235),
    "green": (150, 205, 145),
    "pink": (245, 175, 200),
    "yellow": (250, 225, 120),
    "purple": (180, 150, 220),
    "teal": (20, 135, 135),
}
LOW, MIDDLE, HIGH = (0, 1), (4, 5), (8, 9)
"""Cells where an object may start: near the left or top edge, in the middle, near the other."""
PLACES = {
    "centre": (MIDDLE, MIDDLE),
    "left": (LOW, MIDDLE),
    "right": (HIGH, MIDDLE),
    "top": (MIDDLE, LOW),
    "bottom": (MIDDLE, HIGH),
    "top left": (LOW, LOW),
    "top right": (HIGH, LOW),
}


@dataclass(frozen=True)
class Placed:
    """An object: the index of its concept, the name of its place, its upper left corner in
    pixels."""

    concept: int
    place: str
    x: int
    y: int

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, right, bottom in pixels."""
        return (self.x, self.y, self.x + OBJECT, self.y + OBJECT)


@dataclass(frozen=True)
class Scene:
    """`style` and `background` are indices into STYLES and BACKGROUNDS."""

    objects: tuple[Placed, ...]
    style: int
    background: int

    @property
    def names(self) -> tuple[str, ...]:
        """The names of its concepts."""
        return tuple(names()[placed.concept] for placed in self.objects)


def layout(count: int, rng: np.random.Generator) -> tuple[str, ...]:
    """Places for `count` objects, in the order in which a caption names them."""
    if count == 1:
        places = ("centre", "left", "right", "top", "bottom")
        return (str(rng.choice(places, p=(0.6, 0.1, 0.1, 0.1, 0.1))),)
    if count == 2:
        return ("left", "right") if rng.random() < 0.65 else ("top", "bottom")
    return ("top left", "top right", "bottom")


def place(concept: int, where: str, rng: np.random.Generator) -> Placed:
    """The object at a place, with that place's jitter."""
    columns, rows = PLACES[where]
    return Placed(concept, where, int(rng.choice(columns)) * CELL, int(rng.choice(rows)) * CELL)


def draw(count: int, rng: np.random.Generator) -> Scene:
    """A random scene of `count` different concepts."""
    chosen = rng.choice(len(names()), size=count, replace=False)
    objects = tuple(
        place(int(concept), where, rng)
        for concept, where in zip(chosen, layout(count, rng), strict=True)
    )
    return Scene(objects, int(rng.integers(len(STYLES))), int(rng.integers(len(BACKGROUNDS))))


def loose(count: int, rng: np.random.Generator) -> Scene:
    """Like `draw`, but off the grid, at any pixel near the place. For judges."""
    scene = draw(count, rng)
    moved = []
    for placed in scene.objects:
        x, y = (np.clip(c + rng.integers(-4, 5), 0, SIZE - OBJECT) for c in (placed.x, placed.y))
        moved.append(Placed(placed.concept, placed.place, int(x), int(y)))
    return Scene(tuple(moved), scene.style, scene.background)


def render(scene: Scene, size: int = OBJECT) -> NDArray[np.float32]:
    """`[64, 64, 3]` in 0..1; a `size` other than OBJECT makes the objects larger or smaller."""
    colour = np.asarray(tuple(BACKGROUNDS.values())[scene.background], np.float32) / 255
    image = np.broadcast_to(colour, (SIZE, SIZE, 3)).copy()
    for placed in scene.objects:
        sprite = sprites(size)[scene.style, placed.concept]
        shift = (OBJECT - size) // 2
        x = int(np.clip(placed.x + shift, 0, SIZE - size))
        y = int(np.clip(placed.y + shift, 0, SIZE - size))
        under = image[y : y + size, x : x + size]
        under *= 1 - sprite[..., 3:]
        under += sprite[..., :3]
    return np.clip(image, 0, 1)
