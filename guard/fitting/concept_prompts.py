"""Pairs of unsafe and safe prompts from a concept's phrases, by templates.

Each unsafe prompt has a safe partner of the same form with something else in the concept's place, a
replacement, a companion or a hard negative; so a classifier cannot tell the two by their form.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from guard.concept import Concept
from guard.prompts import PromptPair

LEADS = (
    *("", "", "", "a picture of ", "a drawing of ", "an image of ", "a photo of "),
    *("an illustration of ", "draw ", "show me ", "an emoji of "),
)
TAILS = (
    *("", "", "", "", " on a white background", " on a blue background", ", high quality"),
    *(" on the left", " at the top", " in the middle"),
)
BESIDE = (
    *("{0} and {1}", "{1} and {0}", "{0} next to {1}", "{1} next to {0}", "{0} above {1}"),
    *("{1} above {0}", "{1} on the left and {0} on the right", "{0}, {1} and a tree"),
)
COMPANIONS = (
    *("a tree", "a chair", "a lamp", "a bird", "a mountain", "a boat", "a shoe", "a hat"),
    *("a clock", "a bottle", "a window", "a cloud", "a fork", "a cup", "a computer", "a river"),
)
"""Things that are asked for beside any concept, where its file names none."""


@dataclass(frozen=True)
class LabelledPrompt:
    """`kind` is unsafe, or, for a safe one, far or near (a hard negative)."""

    text: str
    kind: str
    split: str

    @property
    def unsafe(self) -> bool:
        return self.kind == "unsafe"


def prompts_of(concept: Concept, count: int, seed: int = 0) -> list[LabelledPrompt]:
    """About `count` unsafe prompts, as many safe partners, half as many near ones, each split.

    Hard negatives and companions are dealt out to the two splits as phrases are: none is in both.
    """
    rng = random.Random(seed)
    made: dict[str, LabelledPrompt] = {}
    companions = list(concept.companions or COMPANIONS)
    rng.shuffle(companions)
    hard = list(concept.hard_negatives)
    rng.shuffle(hard)
    shares = {"train": (0.0, 0.67), "validation": (0.67, 1.0)}
    for split, (low, high) in shares.items():
        phrases = getattr(concept.phrases, split) or concept.phrases.train
        others = _part(companions, low, high)
        near = _part(hard, low, high)
        total = count if split == "train" else max(count // 2, 400)
        for index in range(total):
            phrase = phrases[index % len(phrases)]
            if rng.random() < 0.2:
                phrase = disguised(phrase, rng)
            form = _form(rng, others, concept.endings)
            partner = rng.choice(concept.replacements) if rng.random() < 0.3 else rng.choice(others)
            for kind, thing in (("unsafe", phrase), ("far", partner)):
                _put(made, form.format(thing), kind, split)
            if index % 2:
                form = _form(rng, others, concept.endings)
                _put(made, form.format(rng.choice(near)), "near", split)
    return list(made.values())


def labelled(pairs: Sequence[PromptPair]) -> list[LabelledPrompt]:
    """Pairs that a user gives; those of the test split stay out of the fit."""
    return [
        LabelledPrompt(text, kind, pair.split)
        for pair in pairs
        if pair.split != "test"
        for text, kind in ((pair.unsafe, "unsafe"), (pair.safe, "far"))
    ]


def disguised(phrase: str, rng: random.Random) -> str:
    """The phrase as somebody writes it who wants to get past a word list."""
    words = phrase.split(" ")
    at = max(range(len(words)), key=lambda i: len(words[i]))
    word = words[at]
    if len(word) < 4:
        return phrase
    i = rng.randrange(1, len(word) - 1)
    words[at] = rng.choice(
        (
            word[:i] + word[i + 1 :],
            word[:i] + word[i] + word[i:],
            word[:i] + word[i + 1] + word[i] + word[i + 2 :],
            " ".join(word),
            "-".join(word),
            word[:i] + "*" + word[i + 1 :],
            word.replace("i", "1").replace("o", "0").replace("e", "3").replace("a", "4"),
        )
    )
    return " ".join(words)


def _form(rng: random.Random, others: Sequence[str], endings: Sequence[str]) -> str:
    """A prompt with one gap, half of the time beside something else."""
    core = "{0}"
    if rng.random() < 0.5:
        core = rng.choice(BESIDE).format("{0}", rng.choice(others))
    ending = f" {rng.choice(endings)}" if endings and rng.random() < 0.4 else ""
    return rng.choice(LEADS) + core + rng.choice(TAILS) + ending


def _part(items: Sequence[str], low: float, high: float) -> list[str]:
    return list(items[round(low * len(items)) : round(high * len(items))]) or list(items)


def _put(made: dict[str, LabelledPrompt], text: str, kind: str, split: str) -> None:
    # the first one stays: no text is in both splits, or has two labels
    made.setdefault(text, LabelledPrompt(text, kind, split))
