"""A search for prompts that no template contains: words that lead to the concept without its name.

An attacker who searches for tokens finds such words: "petals" and "romantic" among noise still give
a rose. This module searches for such prompts while a guard is fitted, and the model itself labels
them (`guard.fitting.prompts.likeness`). The first round samples words, some near the concept, some
from the tokenizer's whole vocabulary. In each further round a classifier, trained on all rounds
before, picks the prompts it is least sure of, out of many new ones and of small changes to prompts
that show the concept (uncertainty sampling, Lewis and Gale 1994).
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
"""Trains on labelled prompts, and returns a function that gives the logits `[rows]` of others."""

NEAR = 300
"""Number of words that count as near the concept."""
SHORTEST, LONGEST = 3, 10
"""Words of a prompt. Shorter prompts are natural ones, which the concept file covers."""
_FRAME = "a picture of {0}"
_FRESH, _PER_LABEL = 0.5, 5


@dataclass(frozen=True)
class Search:
    """`rounds` of about `count` labelled prompts; there is no search if either is 0.

    With `bf16` the denoiser runs in bfloat16. Words are taken from the tokenizer's vocabulary, or
    from a sample of `vocabulary` of them: each is encoded once, which takes as long as all else.
    """

    rounds: int = 3
    count: int = 400
    bf16: bool = False
    vocabulary: int | None = None


def with_searched_prompts(
    image_model: ImageModel,
    concept: Concept,
    prompts: Sequence[LabelledPrompt],
    search: Search,
    classifier: Classifier,
    *,
    splits: Sequence[str],
    seed: int,
    progress: Stages,
) -> list[LabelledPrompt]:
    """`prompts` and searched ones of the kinds `drawn` and `undrawn`, distributed over the splits.

    The given prompts, from templates, define the concept and are the classifier's first training
    data. Hard negatives among them whose images show the concept become `mistaken`. Raises
    DataError if the tokenizer has no whole words.
    """
    if not search.rounds or not search.count:
        return list(prompts)
    vocabulary = [word for _, word in words(image_model.family.readers[0].tokenizer)]
    if not vocabulary:
        raise DataError("the model's tokenizer has no whole words to search among: use --rounds 0")
    rng = random.Random(seed)
    if search.vocabulary is not None:
        vocabulary = rng.sample(vocabulary, min(search.vocabulary, len(vocabulary)))
    likeness = likeness_of(image_model, concept, prompts, seed=seed, bf16=search.bf16)
    known = with_mistaken(image_model, prompts, likeness, progress)
    with torch.autocast(image_model.family.device.type, torch.bfloat16, enabled=search.bf16):
        near = nearest_words(image_model, concept, vocabulary, progress)
    labelled: dict[str, LabelledPrompt] = {}
    for number in range(search.rounds):
        positives = [prompt.text for prompt in labelled.values() if prompt.unsafe]
        if number == 0:
            texts = _proposed(near, vocabulary, positives, search.count, rng)
        else:
            score = classifier([*known, *labelled.values()])
            texts = _proposed(near, vocabulary, positives, _PER_LABEL * search.count, rng)
            texts = [text for text in texts if text not in labelled]
            unsure = score(image_model.encode(texts)).abs().argsort()[: search.count]
            texts = [texts[index] for index in unsure.tolist()]
        advance = progress(f"searching prompts: {number + 1} of {search.rounds}", len(texts))
        alike = likeness(image_model.encode(texts), advance)
        for text, value in zip(texts, alike.tolist(), strict=True):
            # NaN is neither
            if value >= DRAWN or value <= UNDRAWN:
                kind = "drawn" if value >= DRAWN else "undrawn"
                labelled[text] = LabelledPrompt(text, kind, splits[len(labelled) % len(splits)])
    return [*known, *labelled.values()]


def with_mistaken(
    image_model: ImageModel, prompts: Sequence[LabelledPrompt], likeness: Likeness, progress: Stages
) -> list[LabelledPrompt]:
    """The same, with hard negatives whose images show the concept marked as `mistaken`."""
    near = [prompt.text for prompt in prompts if prompt.kind == "near"]
    if not near:
        return list(prompts)
    alike = likeness(image_model.encode(near), progress("labelling hard negatives", len(near)))
    shown = {text for text, value in zip(near, alike.tolist(), strict=True) if value >= DRAWN}
    return [
        replace(prompt, kind="mistaken") if prompt.text in shown else prompt for prompt in prompts
    ]


def nearest_words(
    image_model: ImageModel, concept: Concept, vocabulary: Sequence[str], progress: Stages
) -> list[str]:
    """The `NEAR` words whose states are nearest to the mean of the concept's phrases."""

    def means(texts: Sequence[str], stages: Stages | None) -> Tensor:
        states = image_model.encode([_FRAME.format(text) for text in texts], stages).states
        # all streams count the same
        return torch.cat([F.normalize(s.float().mean(1), dim=1) for s in states.values()], 1)

    of_words = means(vocabulary, progress)
    middle = of_words.mean(0)
    direction = F.normalize(means(concept.phrases.train, None) - middle, dim=1).mean(0)
    order = (F.normalize(of_words - middle, dim=1) @ direction).argsort(descending=True)
    return [vocabulary[index] for index in order[:NEAR].tolist()]


def _proposed(
    near: Sequence[str],
    vocabulary: Sequence[str],
    positives: Sequence[str],
    count: int,
    rng: random.Random,
) -> list[str]:
    """`count` prompts, fewer where some are equal: new ones, or changes of `positives`."""
    proposed: dict[str, None] = {}
    for _ in range(count):
        is_new = not positives or rng.random() < _FRESH
        text = (
            _sampled(near, vocabulary, rng)
            if is_new
            else _mutated(rng.choice(positives), near, vocabulary, rng)
        )
        proposed[text] = None
    return list(proposed)


def _sampled(near: Sequence[str], vocabulary: Sequence[str], rng: random.Random) -> str:
    length = rng.randint(SHORTEST, LONGEST)
    leading = min(rng.choice((0, 1, 1, 2, 2, 3)), length)
    chosen = [_near(near, rng) for _ in range(leading)]
    chosen += [rng.choice(vocabulary) for _ in range(length - leading)]
    rng.shuffle(chosen)
    return " ".join(chosen)


def _mutated(text: str, near: Sequence[str], vocabulary: Sequence[str], rng: random.Random) -> str:
    chosen = text.split(" ")
    for index in rng.sample(range(len(chosen)), min(rng.randint(1, 3), len(chosen))):
        chosen[index] = _near(near, rng) if rng.random() < 0.3 else rng.choice(vocabulary)
    return " ".join(chosen)


def _near(near: Sequence[str], rng: random.Random) -> str:
    # the nearest ones more often
    return near[int(len(near) * rng.random() ** 2)]
