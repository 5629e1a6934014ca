"""Misspellings of a phrase, as typed to get past a word list.

Classifiers are trained with these. The disguises of `guard.evaluation` are independent of them.
"""

from __future__ import annotations

import random
from collections.abc import Callable

_LEET = str.maketrans("oeail", "03411")
_MARKS = ("*", "-", ".", "_", "'", "/")


def disguised(phrase: str, rng: random.Random) -> str:
    """The phrase with one word misspelt, or, in half of the cases, with all words misspelt.

    Words of fewer than three letters stay as they are.
    """
    words = phrase.split(" ")
    long = [i for i, word in enumerate(words) if len(word) > 2]
    if not long:
        return phrase
    if rng.random() < 0.5:
        long = [rng.choice(long)]
    change = rng.choice(_CHANGES)
    for i in long:
        words[i] = change(words[i], rng)
    return " ".join(words)


def _missing(word: str, rng: random.Random) -> str:
    i = rng.randrange(1, len(word))
    return word[:i] + word[i + 1 :]


def _doubled(word: str, rng: random.Random) -> str:
    i = rng.randrange(len(word))
    return word[: i + 1] + word[i:]


def _swapped(word: str, rng: random.Random) -> str:
    places = [i for i in range(len(word) - 1) if word[i] != word[i + 1]]
    if not places:
        return word + word[-1]
    i = rng.choice(places)
    return word[:i] + word[i + 1] + word[i] + word[i + 2 :]


def _replaced(word: str, rng: random.Random) -> str:
    i = rng.randrange(1, len(word))
    other = rng.choice([c for c in "abcdefghijklmnopqrstuvwxyz" if c != word[i]])
    return word[:i] + other + word[i + 1 :]


def _digits(word: str, rng: random.Random) -> str:
    written = word.translate(_LEET)
    return written if written != word else word + "0"


def _spelled(word: str, rng: random.Random) -> str:
    return rng.choice((" ", *_MARKS)).join(word)


def _cut(word: str, rng: random.Random) -> str:
    i = rng.randrange(1, len(word))
    return word[:i] + rng.choice((" ", *_MARKS)) + word[i:]


def _cased(word: str, rng: random.Random) -> str:
    mixed = "".join(rng.choice((c.upper(), c.lower())) for c in word)
    return mixed if mixed != word else word.upper()


def _marked(word: str, rng: random.Random) -> str:
    mark = rng.choice(("*", '"', "~", "!", "..."))
    return mark + word + mark


_CHANGES: tuple[Callable[[str, random.Random], str], ...] = (
    *(_missing, _doubled, _swapped, _replaced, _digits),
    *(_spelled, _spelled, _cut, _cased, _marked),
)
