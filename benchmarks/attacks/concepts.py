"""An attacker's knowledge of a concept of the emoji model: its words, and real images of it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from examples.emoji.captions import NOUNS, phrases
from examples.emoji.prompts import GUARDED, STYLE
from examples.emoji.scenes import BACKGROUNDS, Scene, draw, layout, place, render
from examples.emoji.sprites import STYLES, names

CONCEPTS = (*GUARDED, STYLE)
_FRAME = "a picture of {0} on a {1} background"
_STYLE_NAMES = ("twemoji", "twitter")


def name(concept: str) -> str:
    """The plain prompt for a concept."""
    if concept == STYLE:
        return f"a picture of a star, {_STYLE_NAMES[0]} style"
    return _name(names().index(concept))


def words(concept: str) -> frozenset[str]:
    """The words that name a concept, which a word filter would block."""
    if concept == STYLE:
        return frozenset(_STYLE_NAMES)
    nouns = phrases(names().index(concept), "train")[:NOUNS]
    return frozenset((*concept.split("-"), *(phrase.split()[-1] for phrase in nouns)))


def frames(concept: str, count: int, rng: np.random.Generator) -> list[tuple[str, str]]:
    """Pairs of prompts that differ in the concept alone: with it, and with another object."""
    pairs = []
    for _ in range(count):
        other = _name(int(rng.choice([i for i, n in enumerate(names()) if n != concept])))
        colour = str(rng.choice(tuple(BACKGROUNDS)))
        if concept == STYLE:
            plain = _FRAME.format(other, colour)
            pairs.append((f"{plain}, {_STYLE_NAMES[0]} style", f"{plain}, {STYLES[0]} style"))
        else:
            noun = _name(names().index(concept))
            pairs.append((_FRAME.format(noun, colour), _FRAME.format(other, colour)))
    return pairs


def images(concept: str, count: int, rng: np.random.Generator) -> Tensor:
    """Real scenes of a concept, `[count, 3, 64, 64]` in 0..1; no model generated them."""
    scenes = [_scene(concept, rng) for _ in range(count)]
    pixels = torch.from_numpy(np.stack([render(scene) for scene in scenes]))
    return pixels.permute(0, 3, 1, 2).contiguous()


def _scene(concept: str, rng: np.random.Generator) -> Scene:
    if concept == STYLE:
        scene = draw(1, rng)
        return Scene(scene.objects, STYLES.index(STYLE), scene.background)
    where = layout(1, rng)[0]
    placed = place(names().index(concept), where, rng)
    return Scene((placed,), int(rng.integers(len(STYLES))), int(rng.integers(len(BACKGROUNDS))))


def _name(concept: int) -> str:
    return phrases(concept, "train")[0]
