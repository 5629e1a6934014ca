"""Other spellings of a phrase, as somebody types it who wants to get past a word list.

Classifiers are taught with these; the disguises of `guard.evaluation` are written apart from them.
"""

from __future__ import annotations

import random
from collections.abc import Callable

_LEET = str.maketrans("oeail", "03411")
_MARKS = ("*", "-", ".", "_", "'", "/")


def disguised(phrase: str, rng: random.Random) -> str:
    """The phrase with one of its words, or half of the time with all of them, misspelt.

    A word of fewer than three letters stays as it is; so does a phrase of such words only.
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


def _twice(word: str, rng: random.Random) -> str:
    i = rng.randrange(len(word))
    return word[: i + 1] + word[i:]


def _swapped(word: str, rng: random.Random) -> str:
    places = [i for i in range(len(word) - 1) if word[i] != word[i + 1]]
    if not places:
        return word + word[-1]
    i = rng.choice(places)
    return word[:i] + word[i + 1] + word[i] + word[i + 2 :]


def _wrong(word: str, rng: random.Random) -> str:
    i = rng.randrange(1, len(word))
    other = rng.choice([c for c in "abcdefghijklmnopqrstuvwxyz" if c != word[i]])
    return word[:i] + other + word[i + 1 :]


def _digits(word: str, rng: random.Random) -> str:
    written = word.translate(_LEET)
    return written if written != word else word + "0"


def _spelt(word: str, rng: random.Random) -> str:
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
    *(_missing, _twice, _swapped, _wrong, _digits),
    *(_spelt, _spelt, _cut, _cased, _marked),
)
