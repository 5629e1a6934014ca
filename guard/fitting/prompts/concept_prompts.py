"""Pairs of unsafe and safe prompts from a concept's phrases, by templates.

The safe partner of an unsafe prompt has the same form, with a replacement or a companion in the
concept's place, and is misspelt as often. So a classifier cannot tell the two apart by their form.
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
"""Things beside any concept, and by themselves."""
FILLERS = (
    *("amber", "market", "seven", "silent", "velvet", "north", "often", "paper", "round", "signal"),
    *("under", "winter", "yellow", "zero", "bright", "circle", "dream", "early", "frame", "golden"),
    *("hidden", "island", "jelly", "lively", "metal", "number", "orbit", "plain", "quick", "ready"),
)
"""Words without a scene, as in attackers' prompts: a concept among noise."""

_DISGUISED, _NOISY, _ACCOMPANIED = 0.25, 0.15, 0.5


@dataclass(frozen=True)
class LabelledPrompt:
    """A prompt with its label. Unsafe prompts have `kind` unsafe, safe ones far or near (a hard
    negative).

    Searched prompts are of the kinds drawn (unsafe) and undrawn (safe). A hard negative whose image
    shows the concept is of the kind mistaken: it is safe, but no rate is kept on it.

    `partner` is the safe prompt of the same form as an unsafe one. Prompts of the `split` "train"
    are always trained on, those of other splits are held out in turn. `instead` marks safe prompts
    with what is to replace the concept.
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
    """The splits "train" and "validation" with about `count` unsafe prompts, as many safe partners
    and half as many hard negatives.

    No phrase, hard negative or companion is in both splits.
    """
    rng = random.Random(seed)
    prompts: dict[str, LabelledPrompt] = {}
    companions, hard = _shuffled(concept, rng)
    shares = {"train": (0.0, 0.67), "validation": (0.67, 1.0)}
    for split, (low, high) in shares.items():
        phrases = getattr(concept.phrases, split) or concept.phrases.train
        content = _Content(phrases, _part(companions, low, high), _part(hard, low, high))
        total = count if split == "train" else max(count // 2, 400)
        _add_prompts(prompts, concept, content, split, total, rng)
    return list(prompts.values())


def safe_prompts(concept: Concept, count: int, seed: int = 0) -> list[str]:
    """The safe prompts of the split "train" that `prompts_of` makes: ordinary ones, and hard
    negatives."""
    prompts = prompts_of(concept, count, seed)
    return [prompt.text for prompt in prompts if prompt.split == "train" and not prompt.unsafe]


def folds_of(concept: Concept, count: int, folds: int, seed: int = 0) -> list[LabelledPrompt]:
    """The same for cross-fitting: the splits are `fold 0` ... instead of train and validation.

    Each hard negative, companion and phrase is in one fold; only the first phrase, the concept's
    name, is in all of them.
    """
    rng = random.Random(seed)
    prompts: dict[str, LabelledPrompt] = {}
    companions, hard = _shuffled(concept, rng)
    name, *others = (*concept.phrases.train, *concept.phrases.validation)
    rng.shuffle(others)
    for fold in range(folds):
        phrases = [name, *others[fold::folds]]
        content = _Content(phrases, companions[fold::folds], hard[fold::folds])
        _add_prompts(prompts, concept, content, f"fold {fold}", count // folds, rng)
    return list(prompts.values())


def labelled(pairs: Sequence[PromptPair], folds: int) -> list[LabelledPrompt]:
    """The prompts of a user's pairs; pairs of the validation split are distributed over the folds.

    Pairs of the test split are left out.
    """
    used = [pair for pair in pairs if pair.split != "test"]
    splits = [
        "train" if pair.split == "train" else f"fold {index % folds}"
        for index, pair in enumerate(used)
    ]
    return [
        prompt
        for pair, split in zip(used, splits, strict=True)
        for prompt in (
            LabelledPrompt(pair.prompt, "unsafe", split, pair.safe),
            LabelledPrompt(pair.safe, "far", split),
        )
    ]


@dataclass(frozen=True)
class _Content:
    """The contents of the prompts of one split."""

    phrases: Sequence[str]
    others: Sequence[str]
    near: Sequence[str]


def _add_prompts(
    prompts: dict[str, LabelledPrompt],
    concept: Concept,
    content: _Content,
    split: str,
    count: int,
    rng: random.Random,
) -> None:
    """Add `count` unsafe prompts, their partners and half as many hard negatives to `prompts`."""
    for index in range(count):
        phrase = content.phrases[index % len(content.phrases)]
        for prompt in _pair(concept, phrase, content.others, split, rng):
            _add(prompts, prompt)
        if index % 2 and content.near:
            form = _form(rng, content.others, concept.endings)
            text = form.format(_maybe_disguised(rng.choice(content.near), rng))
            _add(prompts, LabelledPrompt(text, "near", split))


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
    phrase_text, safe = (disguised(t, rng) if changed else t for t in (phrase, other))
    if concept.ending:
        scene = _form(rng, others, ()).format(rng.choice(others))
        joint = rng.choice((" ", ", "))
        unsafe, partner = (
            f"{scene}{joint}{phrase_text}",
            f"{scene}{joint}{safe}" if replaced else scene,
        )
    else:
        form = _form(rng, others, concept.endings)
        unsafe, partner = form.format(phrase_text), form.format(safe)
    # another style in the concept's place is near, a scene without a style is far
    kind = "near" if concept.ending and replaced else "far"
    instead = replaced and other in concept.instead
    return (
        LabelledPrompt(unsafe, "unsafe", split, partner),
        LabelledPrompt(partner, kind, split, instead=instead),
    )


def _maybe_disguised(thing: str, rng: random.Random) -> str:
    return disguised(thing, rng) if rng.random() < _DISGUISED else thing


def _form(rng: random.Random, others: Sequence[str], endings: Sequence[str]) -> str:
    """A prompt with one gap, in half of the cases beside something else."""
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


def _add(prompts: dict[str, LabelledPrompt], prompt: LabelledPrompt) -> None:
    # the first prompt with a text is kept: no text is in two splits or has two labels
    prompts.setdefault(prompt.text, prompt)
