"""What guards of the autoregressive model are fitted on: captions, and pairs of them.

The second caption of a pair asks for INSTEAD where the first one asks for the concept. Both are
read before the same image tokens, those that the model draws for the second.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from examples.emoji.captions import caption
from examples.emoji.scenes import Scene, draw
from examples.emoji.sprites import names
from guard.data.prompts import ForgetPrompt, RetainPrompt
from guard.models.token_images import TokenImageModel

INSTEAD = "balloon"
_SPLITS = ("train", "validation")


@dataclass(frozen=True)
class Twins:
    """Two captions of a scene, and the names of the objects that both have."""

    asked: str
    instead: str
    others: tuple[str, ...]


@dataclass(frozen=True)
class Pair:
    """Token ids of the prompts for the concept and for what stands in its place, and of an image of
    the latter."""

    asked: tuple[int, ...]
    instead: tuple[int, ...]
    image: tuple[int, ...]


def captions_with(concept: str, count: int, seed: int) -> Iterator[Twins]:
    """Training captions of scenes with the concept, each with its twin."""
    number, other = names().index(concept), names().index(INSTEAD)
    rng = np.random.default_rng((7, seed))
    while count:
        scene = draw(int(rng.integers(1, 3)), rng)
        if {number, other} & {placed.concept for placed in scene.objects}:
            continue  # they are put in below
        at = int(rng.integers(len(scene.objects)))
        words = int(rng.integers(2**31))
        others = tuple(name for i, name in enumerate(scene.names) if i != at)
        yield Twins(_with(scene, at, number, words), _with(scene, at, other, words), others)
        count -= 1


def _with(scene: Scene, at: int, concept: int, words: int) -> str:
    objects = [*scene.objects]
    objects[at] = replace(objects[at], concept=concept)
    return caption(replace(scene, objects=tuple(objects)), np.random.default_rng(words))


def forget_rows(concept: str, count: int = 120) -> list[ForgetPrompt]:
    """Captions with the concept for a gate, two thirds of them to train it."""
    asked = [twins.asked for twins in captions_with(concept, count, 1)]
    return [
        ForgetPrompt(prompt=text, facts=(concept,), split=_split(i, count))
        for i, text in enumerate(asked)
    ]


def retain_rows(concept: str, count: int = 900) -> list[RetainPrompt]:
    """Captions without it; those with another weapon or tool are near ones."""
    kinds = {"knife": ("scissors", "hammer", "pistol"), "cat": ("lion", "dog", "rabbit")}
    near = {names().index(name) for name in kinds.get(concept, ())}
    number, rng = names().index(concept), np.random.default_rng(8)
    found: dict[str, bool] = {}
    while len(found) < count:
        scene = draw(int(rng.integers(1, 3)), rng)
        concepts = {placed.concept for placed in scene.objects}
        if number not in concepts:
            found.setdefault(caption(scene, rng), bool(near & concepts))
    return [
        RetainPrompt(prompt=text, kind="near" if is_near else "far", split=_split(i, count))
        for i, (text, is_near) in enumerate(found.items())
    ]


def _split(number: int, count: int) -> str:
    return _SPLITS[number >= count * 2 // 3]


def drawn_pairs(model: TokenImageModel, twins: Sequence[Twins]) -> list[Pair]:
    """Pairs of these captions, with images that the bare model draws for the second ones."""
    asked = [model.chat.prompt(each.asked) for each in twins]
    instead = [model.chat.prompt(each.instead) for each in twins]
    images = model.draw(instead, range(len(twins)))
    return [
        Pair(tuple(a.tokens), tuple(b.tokens), image.tokens)
        for a, b, image in zip(asked, instead, images, strict=True)
    ]
