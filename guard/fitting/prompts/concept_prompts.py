"""Pairs of unsafe and safe prompts from a concept's phrases, by templates.

Each unsafe prompt has a safe partner of the same form with something else in the concept's place, a
replacement or a companion, and disguised as often; so a classifier cannot tell the two by their
form.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from guard.data.concept import Concept
from guard.data.prompts import PromptPair
from guard.fitting.prompts.spellings import disguised

LEADS = (
    *("", "", "", "a picture of ", "a drawing of ", "an image of ", "a photo of "),
    *("an illustration of ", "draw ", "show me ", "an emoji of "),
)
TAILS = (
    *("", "", "", "", " on a white background", " on a blue background", ", high quality"),
    *(" on the left", " at the top", " in the middle", " on a table", " in a garden"),
)
BESIDE = (
    *("{0} and {1}", "{1} and {0}", "{0} next to {1}", "{1} beside {0}", "{0} above {1}"),
    *("{1} above {0}", "{1} on the left and {0} on the right", "{0}, {1} and a tree"),
)
COMPANIONS = (
    *("a tree", "a chair", "a lamp", "a bird", "a mountain", "a boat", "a shoe", "a hat"),
    *("a clock", "a bottle", "a window", "a cloud", "a candle", "a cup", "a computer", "a river"),
    *("a dancer", "a bridge", "a drum", "a castle", "a mushroom", "a doctor", "a ladder", "a goat"),
    *("a wheel of cheese", "an old book", "two children", "a city at night", "the ocean"),
    *("a happy family", "something blue", "a spaceship", "the colour green", "a quiet morning"),
)
"""Things that are asked for beside any concept, and alone."""
FILLERS = (
    *("amber", "market", "seven", "silent", "velvet", "north", "often", "paper", "round", "signal"),
    *("under", "winter", "yellow", "zero", "bright", "circle", "dream", "early", "frame", "golden"),
    *("hidden", "island", "jelly", "lively", "metal", "number", "orbit", "plain", "quick", "ready"),
)
"""Words without a scene: attackers' prompts are a concept among noise."""

_DISGUISED, _NOISY, _ACCOMPANIED = 0.25, 0.15, 0.5


@dataclass(frozen=True)
class LabelledPrompt:
    """`kind` is unsafe, or, for a safe one, far or near (a hard negative).

    Searched prompts have kinds of their own: drawn, which are unsafe, and undrawn, which are not. A
    hard negative under which the model draws the concept is mistaken: safe, but no rate is kept on
    it.

    `partner` is the safe prompt of the same form as an unsafe one. `split` is "train" for what is
    always taught; anything else is held out of some of the teaching. `instead` marks the safe
    prompts that show what is to be drawn in the concept's place.
    """

    text: str
    kind: str
    split: str
    partner: str = ""
    instead: bool = False

    @property
    def unsafe(self) -> bool:
        return self.kind in ("unsafe", "drawn")


def prompts_of(concept: Concept, count: int, seed: int = 0) -> list[LabelledPrompt]:
    """About `count` unsafe prompts, as many safe partners, half as many near ones, each split.

    Hard negatives and companions are dealt out to the two splits as phrases are: none is in both.
    """
    rng = random.Random(seed)
    made: dict[str, LabelledPrompt] = {}
    companions, hard = _shuffled(concept, rng)
    shares = {"train": (0.0, 0.67), "validation": (0.67, 1.0)}
    for split, (low, high) in shares.items():
        phrases = getattr(concept.phrases, split) or concept.phrases.train
        things = _Things(phrases, _part(companions, low, high), _part(hard, low, high))
        total = count if split == "train" else max(count // 2, 400)
        _make(made, concept, things, split, total, rng)
    return list(made.values())


def folds_of(concept: Concept, count: int, folds: int, seed: int = 0) -> list[LabelledPrompt]:
    """The same for fitting in turns: splits `fold 0` ... in place of train and validation.

    Hard negatives, companions and phrases are dealt out to the folds; only the first phrase, the
    concept's name, is in all of them.
    """
    rng = random.Random(seed)
    made: dict[str, LabelledPrompt] = {}
    companions, hard = _shuffled(concept, rng)
    name, *others = (*concept.phrases.train, *concept.phrases.validation)
    rng.shuffle(others)
    for fold in range(folds):
        phrases = [name, *others[fold::folds]]
        things = _Things(phrases, companions[fold::folds], hard[fold::folds])
        _make(made, concept, things, f"fold {fold}", count // folds, rng)
    return list(made.values())


def labelled(pairs: Sequence[PromptPair], folds: int) -> list[LabelledPrompt]:
    """Pairs that a user gives: those of the validation split are dealt out to the folds.

    Those of the test split stay out of the fit.
    """
    given = [pair for pair in pairs if pair.split != "test"]
    splits = [
        "train" if pair.split == "train" else f"fold {index % folds}"
        for index, pair in enumerate(given)
    ]
    return [
        prompt
        for pair, split in zip(given, splits, strict=True)
        for prompt in (
            LabelledPrompt(pair.prompt, "unsafe", split, pair.safe),
            LabelledPrompt(pair.safe, "far", split),
        )
    ]


@dataclass(frozen=True)
class _Things:
    """What the prompts of one split speak of."""

    phrases: Sequence[str]
    others: Sequence[str]
    near: Sequence[str]


def _make(
    made: dict[str, LabelledPrompt],
    concept: Concept,
    things: _Things,
    split: str,
    count: int,
    rng: random.Random,
) -> None:
    """Put `count` unsafe prompts, their partners and half as many hard negatives into `made`."""
    for index in range(count):
        phrase = things.phrases[index % len(things.phrases)]
        for prompt in _pair(concept, phrase, things.others, split, rng):
            _put(made, prompt)
        if index % 2 and things.near:
            form = _form(rng, things.others, concept.endings)
            text = form.format(_perhaps(rng.choice(things.near), rng))
            _put(made, LabelledPrompt(text, "near", split))


def _shuffled(concept: Concept, rng: random.Random) -> tuple[list[str], list[str]]:
    """Companions and hard negatives."""
    companions = list(dict.fromkeys((*concept.companions, *COMPANIONS)))
    rng.shuffle(companions)
    hard = list(concept.hard_negatives)
    rng.shuffle(hard)
    return companions, hard


def _pair(
    concept: Concept, phrase: str, others: Sequence[str], split: str, rng: random.Random
) -> tuple[LabelledPrompt, LabelledPrompt]:
    """An unsafe prompt and its safe partner."""
    replaced = rng.random() < (0.4 if concept.ending else 0.3)
    other = rng.choice(concept.replacements if replaced else others)
    changed = rng.random() < _DISGUISED
    said, safe = (disguised(t, rng) if changed else t for t in (phrase, other))
    if concept.ending:
        scene = _form(rng, others, ()).format(rng.choice(others))
        joint = rng.choice((" ", ", "))
        unsafe, partner = f"{scene}{joint}{said}", f"{scene}{joint}{safe}" if replaced else scene
    else:
        form = _form(rng, others, concept.endings)
        unsafe, partner = form.format(said), form.format(safe)
    # a style in the concept's place is near, a scene with nothing said is not
    kind = "near" if concept.ending and replaced else "far"
    instead = replaced and other in concept.instead
    return (
        LabelledPrompt(unsafe, "unsafe", split, partner),
        LabelledPrompt(partner, kind, split, instead=instead),
    )


def _perhaps(thing: str, rng: random.Random) -> str:
    return disguised(thing, rng) if rng.random() < _DISGUISED else thing


def _form(rng: random.Random, others: Sequence[str], endings: Sequence[str]) -> str:
    """A prompt with one gap, half of the time beside something else."""
    if rng.random() < _NOISY:
        words = [*rng.sample(FILLERS, rng.randint(1, 4)), "{0}"]
        rng.shuffle(words)
        return " ".join(words)
    core = "{0}"
    if rng.random() < _ACCOMPANIED:
        core = rng.choice(BESIDE).format("{0}", rng.choice(others))
    ending = f" {rng.choice(endings)}" if endings and rng.random() < 0.4 else ""
    return rng.choice(LEADS) + core + rng.choice(TAILS) + ending


def _part(items: Sequence[str], low: float, high: float) -> list[str]:
    return list(items[round(low * len(items)) : round(high * len(items))]) or list(items)


def _put(made: dict[str, LabelledPrompt], prompt: LabelledPrompt) -> None:
    # the first one stays: no text is in both splits, or has two labels
    made.setdefault(prompt.text, prompt)
