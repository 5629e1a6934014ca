"""Captions of scenes, from templates and each concept's phrases.

Each concept has phrases for training, for validation and for the test: no phrase is in two of them,
so that figures on the phrases of the test are not memorised.
"""

from __future__ import annotations

from functools import cache
from typing import Literal

import numpy as np

from examples.emoji.scenes import BACKGROUNDS, Scene
from examples.emoji.sprites import concepts

Split = Literal["train", "validation", "test"]

NOUNS = 3
"""The first training phrases of a concept are names; the others are descriptions."""
_LEADS = ("a picture of ", "a drawing of ", "an illustration of ", "an image of ", "an emoji of ")
_STYLES = (("noto style", "google style"), ("twemoji style", "twitter style"))
_SINGLE = {
    "centre": ("{0} in the middle", "{0} in the centre"),
    "left": ("{0} on the left", "{0} on the left side"),
    "right": ("{0} on the right", "{0} on the right side"),
    "top": ("{0} at the top",),
    "bottom": ("{0} at the bottom",),
}
_ACROSS = (
    "{0} on the left and {1} on the right",
    "{0} and {1}",
    "{0} and {1}",
    "{0} next to {1}",
    "{0} beside {1}",
    "{0} to the left of {1}",
    "{1} to the right of {0}",
    "{1} on the right and {0} on the left",
)
_DOWN = (
    "{0} above {1}",
    "{0} over {1}",
    "{1} below {0}",
    "{1} under {0}",
    "{0} at the top and {1} at the bottom",
)
_THREE = ("{0}, {1} and {2}", "{0} and {1} above {2}", "{0} next to {1}, with {2} below")


@cache
def phrases(concept: int, split: Split) -> tuple[str, ...]:
    """A concept's phrases of one split."""
    split_phrases = concepts()[concept][split]
    assert isinstance(split_phrases, list)
    return tuple(split_phrases)


def phrase(concept: int, rng: np.random.Generator, *, short: bool) -> str:
    """A random training phrase; `short` ones are mostly names, most often the first one."""
    training = phrases(concept, "train")
    if rng.random() < 0.3:
        return training[0]
    choices = training[:NOUNS] if short and rng.random() < 0.75 else training
    return str(rng.choice(choices))


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """A training caption: the objects, often their places, sometimes style and background."""
    many = len(scene.objects) > 1
    nouns = [phrase(placed.concept, rng, short=many) for placed in scene.objects]
    first = scene.objects[0].place
    if len(nouns) == 3:
        template = str(rng.choice(_THREE, p=(0.6, 0.2, 0.2)))
    elif len(nouns) == 2:
        template = str(rng.choice(_ACROSS if first == "left" else _DOWN))
    else:
        stated = rng.random() < (0.15 if first == "centre" else 0.85)
        template = str(rng.choice(_SINGLE[first])) if stated else "{0}"
    lead = str(rng.choice(_LEADS)) if rng.random() < 0.3 else ""
    return decorate(
        lead + template.format(*nouns),
        style=scene.style if rng.random() < 0.6 else None,
        background=scene.background if rng.random() < 0.5 else None,
        rng=rng,
    )


def decorate(
    text: str, *, style: int | None, background: int | None, rng: np.random.Generator
) -> str:
    """`text` with the name of the style and of the background, where they are given."""
    if background is not None:
        colour = tuple(BACKGROUNDS)[background]
        form = str(
            rng.choice((" on a {} background", " against a {} background", ", {} background"))
        )
        text += form.format(colour)
    if style is not None:
        name = str(rng.choice(_STYLES[style]))
        text += str(rng.choice((" in {}", ", {}"))).format(name)
    return text
