"""Training images: portraits on backgrounds, two people side by side, scenes of emoji."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from examples.emoji import scenes
from examples.emoji.sprites import sprites
from examples.portraits.draw import SIDE, portraits

SIZE = 96
"""Side of the model's images in pixels."""
SCALE = SIZE / scenes.SIZE
SPRITE = round(scenes.OBJECT * SCALE)


def background(rng: np.random.Generator) -> Image.Image:
    """A plain colour or a gradient between two."""
    one, other = rng.integers(90, 256, (2, 3))
    if rng.random() < 0.5:
        return Image.new("RGB", (SIZE, SIZE), tuple(int(c) for c in one))
    share = np.linspace(0, 1, SIZE)[:, None, None]
    wide = np.broadcast_to(one * (1 - share) + other * share, (SIZE, SIZE, 3))
    turned = wide if rng.random() < 0.5 else wide.swapaxes(0, 1)
    return Image.fromarray(np.ascontiguousarray(turned.astype(np.uint8)))


def placed(
    person: int,
    column: int,
    rng: np.random.Generator,
    *,
    zoom: tuple[float, float] = (0.82, 1.15),
    centre: float = 0.5,
) -> Image.Image:
    """A portrait on a transparent canvas of SIZE: `centre` is the share of the width at which it
    stands, `zoom` bounds its size."""
    portrait = Image.fromarray(portraits()[person, column])
    scale = float(rng.uniform(*zoom))
    across = SIZE * centre + float(rng.uniform(-7, 7))
    down = SIZE * 0.5 + float(rng.uniform(-5, 9)) + max(0.0, (1 - scale) * SIZE / 3)
    step = SIDE / (SIZE * scale)
    matrix = (step, 0, SIDE / 2 - across * step, 0, step, SIDE / 2 - down * step)
    return portrait.transform(
        (SIZE, SIZE), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC
    )


def portrait(person: int, column: int, rng: np.random.Generator) -> Image.Image:
    """One person on a background."""
    image = background(rng)
    figure = placed(person, column, rng)
    image.paste(figure, (0, 0), figure)
    return image


def pair(left: tuple[int, int], right: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """Two people, each `(person, column)`, side by side."""
    image = background(rng)
    for (person, column), centre in ((left, 0.27), (right, 0.73)):
        figure = placed(person, column, rng, zoom=(0.58, 0.68), centre=centre)
        image.paste(figure, (0, 0), figure)
    return image


def scene(drawn: scenes.Scene) -> Image.Image:
    """A scene of emoji at the model's size."""
    colour = tuple(scenes.BACKGROUNDS.values())[drawn.background]
    image = np.broadcast_to(np.asarray(colour, np.float32) / 255, (SIZE, SIZE, 3)).copy()
    for item in drawn.objects:
        sprite = sprites(SPRITE)[drawn.style, item.concept]
        x, y = round(item.x * SCALE), round(item.y * SCALE)
        under = image[y : y + SPRITE, x : x + SPRITE]
        under *= 1 - sprite[..., 3:]
        under += sprite[..., :3]
    return Image.fromarray((np.clip(image, 0, 1) * 255).astype(np.uint8))


def disturbed(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The image as a bad camera or another program gives it: light, colours, blur, noise."""
    if rng.random() < 0.5:
        image = ImageEnhance.Brightness(image).enhance(float(rng.uniform(0.7, 1.25)))
        image = ImageEnhance.Contrast(image).enhance(float(rng.uniform(0.7, 1.3)))
        image = ImageEnhance.Color(image).enhance(float(rng.uniform(0.5, 1.4)))
    if rng.random() < 0.15:
        image = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.3, 1.2))))
    if rng.random() < 0.06:
        image = ImageOps.posterize(image, 3)
    if rng.random() < 0.3:
        pixels = np.asarray(image, np.float32)
        noise = rng.normal(0, rng.uniform(2, 16), pixels.shape)
        image = Image.fromarray(np.clip(pixels + noise, 0, 255).astype(np.uint8))
    return image
