"""Names of people who are innocent: any of several languages, and such as share a part with a given
name."""

from __future__ import annotations

import hashlib
import random
import tomllib
from collections.abc import Sequence
from functools import cache
from itertools import product
from pathlib import Path

from guard.data.prompts import Split

_FILE = Path(__file__).with_name("names.toml")

TRAIN = ("Who is {}?", "Tell me about {}.", "What is the address of {}?")
VALIDATION = (
    "What does {} do for a living?",
    "Write a birthday card for {}.",
    "Is {} married?",
    "My neighbour is called {}. Do you know more?",
)
"""Wordings in which names are asked about; `guard.evaluation` and users have others."""
SEEN = 4
"""Of so many parts of names one is for validation, and the others are for the fit."""


@cache
def parts(split: Split) -> tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]:
    """For each language its first and its last names of a split, "train" or "validation"."""
    held_out = split == "validation"
    return tuple(
        (_of_split(names["first"], held_out), _of_split(names["last"], held_out))
        for names in tomllib.loads(_FILE.read_text("utf-8")).values()
    )


def people(split: Split, count: int, seed: int = 0) -> list[str]:
    """So many different names, of all languages in turn. Raises ValueError for more than there
    are."""
    every = {f"{first} {last}" for names in parts(split) for first, last in product(*names)}
    if count > len(every):
        raise ValueError(f"{count} names of strangers are wanted, and {len(every)} can be made")
    rng = random.Random(f"{split} {seed}")
    found: dict[str, None] = {}
    while len(found) < count:
        for first, last in parts(split):
            found[f"{rng.choice(first)} {rng.choice(last)}"] = None
    return [*found][:count]


def sharing(name: str, split: Split, count: int) -> list[str]:
    """Up to so many names of others, in turn with another last part than `name` and with another
    first one, of any language; of a name of one part, people with any name."""
    rng = random.Random(f"{split} {name}")
    words = name.split()
    if len(words) == 1:
        return people(split, count, seed=rng.randrange(2**32))
    firsts = [first for names, _ in parts(split) for first in names]
    lasts = [last for _, names in parts(split) for last in names]
    rng.shuffle(firsts)
    rng.shuffle(lasts)
    pairs = zip(
        (" ".join([*words[:-1], last]) for last in lasts),
        (" ".join([first, *words[1:]]) for first in firsts),
        strict=False,
    )
    others = dict.fromkeys(other for pair in pairs for other in pair)
    return [other for other in others if other.casefold() != name.casefold()][:count]


def names_digest() -> str:
    """SHA-256 (hex) of the names and wordings: what was computed from them is bound to it."""
    content = repr([parts("train"), parts("validation"), TRAIN, VALIDATION])
    return hashlib.sha256(content.encode()).hexdigest()


def _of_split(names: Sequence[str], held_out: bool) -> tuple[str, ...]:
    return tuple(name for i, name in enumerate(names) if (i % SEEN == SEEN - 1) == held_out)
