"""What an attack on a guard of prompts teaches it: what came through, and prompts around it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from guard.evaluation.images.generator import generated
from guard.evaluation.images.judge import Judge
from guard.fitting.prompts.attack import Attacker, Attempt, Score
from guard.fitting.prompts.likeness import DRAWN, UNDRAWN
from guard.fitting.prompts.vocabulary import typed
from guard.models.images import ImageModel
from guard.reporting.progress import Stages
from steering.engines.diffusion.engine import DiffusionEngine, ImageStart

_CAPACITY = 16


@dataclass(frozen=True)
class JudgedAttempts:
    """A judge of images, and how they are generated: an attack counts only if its image shows
    `label`."""

    judge: Judge
    label: str
    steps: int
    guidance: float

    @property
    def about(self) -> list[Any]:
        """What the results depend on, JSON-ready."""
        return [self.judge.digest, self.label, self.steps, self.guidance]

    @torch.no_grad()
    def shown(
        self, image_model: ImageModel, attempts: Sequence[Attempt], seed: int
    ) -> list[Attempt]:
        """Those whose image, of the model without guards, shows the label."""
        if not attempts:
            return []
        engine = DiffusionEngine(image_model.family, capacity=_CAPACITY)
        starts = [
            ImageStart(
                attempt.prompt,
                seed=seed + number,
                steps=self.steps,
                guidance=self.guidance,
                embeddings=attempt.learned,
            )
            for number, attempt in enumerate(attempts)
        ]
        try:
            images = np.stack([row.image for row in generated(engine, starts, lambda _n: None)])
        finally:
            engine.close()
        views = self.judge.views(images)
        return [a for a, view in zip(attempts, views, strict=True) if view.shows(self.label)]


@dataclass(frozen=True)
class Searched:
    """The result of one search: what came through, and labelled prompts around it."""

    searches: int
    prompts: list[str]
    words: list[list[list[float]]]
    unsafe: list[str]
    safe: list[str]

    @property
    def found(self) -> int:
        return len(self.prompts) + len(self.words)


def search(
    attacker: Attacker,
    score: Score,
    limit: float,
    phrases: Sequence[str],
    neighbours: int,
    judged: JudgedAttempts | None,
    seed: int,
    progress: Stages,
) -> dict[str, Any]:
    """The fields of `Searched`, of one search through the guard."""
    attack = attacker.attack
    searches = attack.prompts + attack.words
    advance = progress("attacking the guard", searches)
    attempts = list(attacker.attempts(score, limit, phrases, seed=seed, advance=advance))
    found = [attempt for attempt in attempts if attempt.evades(limit)]
    if judged is not None:
        found = judged.shown(attacker.image_model, found, seed)
    prompts = list(dict.fromkeys(a.prompt for a in found if a.vectors is None))
    around = _around(attacker, prompts, neighbours, seed)
    words = [a.vectors.tolist() for a in found if a.vectors is not None]
    return {
        "searches": searches,
        "prompts": prompts,
        "words": words,
        **_labelled(attacker, around),
    }


def noise(attacker: Attacker, phrases: Sequence[str], count: int, seed: int) -> dict[str, Any]:
    """The fields of `Searched`, of prompts of random words, every second one with a phrase."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for number in range(count):
        phrase = phrases[number // 2 % len(phrases)] if number % 2 else ""
        tokens = attacker.start(phrase, generator)
        # the phrase may stand at any place
        rows.append(tokens.roll(int(torch.randint(len(tokens), (), generator=generator))))
    texts = _typed(attacker, rows)
    return {"searches": 0, "prompts": [], "words": [], **_labelled(attacker, texts)}


def _labelled(attacker: Attacker, texts: Sequence[str]) -> dict[str, list[str]]:
    """Prompts by the denoiser's view of them; those that it is not sure of are left out."""
    alike = attacker.likeness(attacker.image_model.encode(texts)).tolist() if texts else []
    pairs = list(zip(texts, alike, strict=True))
    # NaN is neither
    return {
        "unsafe": [text for text, value in pairs if value >= DRAWN],
        "safe": [text for text, value in pairs if value <= UNDRAWN],
    }


def _typed(attacker: Attacker, rows: Sequence[Tensor]) -> list[str]:
    """The texts of rows of tokens that can be typed, each once."""
    if not rows:
        return []
    texts, possible = typed(attacker.tokenizer, torch.stack(list(rows)))
    new = (text for text, can_be in zip(texts, possible.tolist(), strict=True) if can_be)
    return list(dict.fromkeys(new))


def _around(attacker: Attacker, prompts: Sequence[str], count: int, seed: int) -> list[str]:
    """Prompts of the same tokens but a few, `count` of each."""
    generator = torch.Generator().manual_seed(seed + 1)
    rows = []
    for prompt in prompts:
        tokens = attacker.start(prompt, generator)
        for _ in range(count):
            changes = int(torch.randint(1, max(2, len(tokens) // 2 + 1), (), generator=generator))
            places = torch.randperm(len(tokens), generator=generator)[:changes]
            changed = tokens.clone()
            changed[places] = attacker.random(len(places), generator)
            rows.append(changed)
    return [text for text in _typed(attacker, rows) if text not in prompts]
