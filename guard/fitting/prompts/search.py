"""Prompts that no template thinks of: words in a row under which the model draws the concept.

Attackers search for tokens, and what they find says the concept without its name: "petals" and
"romantic" among noise still draw a rose. Such prompts are searched for here while a guard is
fitted, and labelled by the model itself (`guard.fitting.prompts.likeness`). The first round draws
words, some near the concept, some from all of the tokenizer's vocabulary. In every further one a
classifier that was taught all rounds before picks those it is least sure of, out of many fresh ones
and of small changes to the ones that drew the concept (uncertainty sampling, Lewis and Gale 1994).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from guard.data.concept import Concept
from guard.errors import DataError
from guard.fitting.prompts.concept_prompts import LabelledPrompt
from guard.fitting.prompts.likeness import DRAWN, UNDRAWN, Likeness, likeness_of
from guard.fitting.prompts.vocabulary import words
from guard.models.images import ImageModel
from guard.reporting.progress import Stages
from steering.images.conditioning import Conditioning

Classifier = Callable[[Sequence[LabelledPrompt]], Callable[[Conditioning], Tensor]]
"""Taught labelled prompts; gives logits `[rows]` of others."""

NEAR = 300
"""Words that count as near the concept."""
SHORTEST, LONGEST = 3, 10
"""Words of a prompt. Fewer are a natural prompt: the concept file says what these mean."""
_FRAME = "a picture of {0}"
_FRESH, _PER_LABEL = 0.5, 5


@dataclass(frozen=True)
class Search:
    """`rounds` of about `count` prompts that are labelled; with either of them 0, none.

    `bf16` computes the denoiser in bfloat16.
    """

    rounds: int = 3
    count: int = 400
    bf16: bool = False


def searched(
    painter: ImageModel,
    concept: Concept,
    prompts: Sequence[LabelledPrompt],
    search: Search,
    classifier: Classifier,
    *,
    splits: Sequence[str],
    seed: int,
    progress: Stages,
) -> list[LabelledPrompt]:
    """`prompts`, with searched ones of the kinds `drawn` and `undrawn`, dealt out to the splits.

    The given ones, from templates, say what the concept is, and begin the classifier's teaching.
    Those hard negatives among them under which the model draws the concept become `mistaken`.
    Raises DataError where the tokenizer has no words to search among.
    """
    if not search.rounds or not search.count:
        return list(prompts)
    every = [word for _, word in words(painter.family.readers[0].tokenizer)]
    if not every:
        raise DataError("the model's tokenizer has no whole words to search among: use --rounds 0")
    rng = random.Random(seed)
    likeness = likeness_of(painter, concept, prompts, seed=seed, bf16=search.bf16)
    known = _mistaken(painter, prompts, likeness, progress)
    with torch.autocast(painter.family.device.type, torch.bfloat16, enabled=search.bf16):
        near = _nearest(painter, concept, every, progress)
    found: dict[str, LabelledPrompt] = {}
    for number in range(search.rounds):
        drawn = [prompt.text for prompt in found.values() if prompt.unsafe]
        if number == 0:
            texts = _proposed(near, every, drawn, search.count, rng)
        else:
            score = classifier([*known, *found.values()])
            texts = _proposed(near, every, drawn, _PER_LABEL * search.count, rng)
            texts = [text for text in texts if text not in found]
            unsure = score(painter.read(texts)).abs().argsort()[: search.count]
            texts = [texts[at] for at in unsure.tolist()]
        advance = progress(f"searching prompts: {number + 1} of {search.rounds}", len(texts))
        alike = likeness(painter.read(texts), advance)
        for text, value in zip(texts, alike.tolist(), strict=True):
            # what is not finite is neither
            if value >= DRAWN or value <= UNDRAWN:
                kind = "drawn" if value >= DRAWN else "undrawn"
                found[text] = LabelledPrompt(text, kind, splits[len(found) % len(splits)])
    return [*known, *found.values()]


def _mistaken(
    painter: ImageModel, prompts: Sequence[LabelledPrompt], likeness: Likeness, progress: Stages
) -> list[LabelledPrompt]:
    near = [prompt.text for prompt in prompts if prompt.kind == "near"]
    if not near:
        return list(prompts)
    alike = likeness(painter.read(near), progress("looking at hard negatives", len(near)))
    drawn = {text for text, value in zip(near, alike.tolist(), strict=True) if value >= DRAWN}
    return [
        replace(prompt, kind="mistaken") if prompt.text in drawn else prompt for prompt in prompts
    ]


def _nearest(
    painter: ImageModel, concept: Concept, every: Sequence[str], progress: Stages
) -> list[str]:
    """The `NEAR` words whose states come nearest to the mean of the concept's phrases."""

    def means(texts: Sequence[str], stages: Stages | None) -> Tensor:
        states = painter.read([_FRAME.format(text) for text in texts], stages).states
        # of all streams; each says as much as its length lets it
        return torch.cat([F.normalize(own.float().mean(1), dim=1) for own in states.values()], 1)

    of_words = means(every, progress)
    middle = of_words.mean(0)
    own = F.normalize(means(concept.phrases.train, None) - middle, dim=1).mean(0)
    order = (F.normalize(of_words - middle, dim=1) @ own).argsort(descending=True)
    return [every[at] for at in order[:NEAR].tolist()]


def _proposed(
    near: Sequence[str],
    every: Sequence[str],
    drawn: Sequence[str],
    count: int,
    rng: random.Random,
) -> list[str]:
    """`count` prompts: words in a row, or changes of ones that drew the concept."""
    made: dict[str, None] = {}
    for _ in range(count):
        fresh = not drawn or rng.random() < _FRESH
        text = _row(near, every, rng) if fresh else _mutated(rng.choice(drawn), near, every, rng)
        made[text] = None
    return list(made)


def _row(near: Sequence[str], every: Sequence[str], rng: random.Random) -> str:
    length = rng.randint(SHORTEST, LONGEST)
    leading = min(rng.choice((0, 1, 1, 2, 2, 3)), length)
    said = [_near(near, rng) for _ in range(leading)]
    said += [rng.choice(every) for _ in range(length - leading)]
    rng.shuffle(said)
    return " ".join(said)


def _mutated(text: str, near: Sequence[str], every: Sequence[str], rng: random.Random) -> str:
    said = text.split(" ")
    for at in rng.sample(range(len(said)), min(rng.randint(1, 3), len(said))):
        said[at] = _near(near, rng) if rng.random() < 0.3 else rng.choice(every)
    return " ".join(said)


def _near(near: Sequence[str], rng: random.Random) -> str:
    # the nearest ones more often
    return near[int(len(near) * rng.random() ** 2)]
