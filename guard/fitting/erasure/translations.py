"""The names of a concept in other languages, as the model itself tells them.

The model is asked what a concept is called, and then what the name that it gives is called in
English: only a name that leads back counts, since small models invent names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from guard.fitting.erasure.documents import MAX_NAME
from guard.fitting.erasure.naming import mentions

LANGUAGES = ("German", "French", "Spanish", "Italian", "Portuguese", "Dutch")
ASKED = 'What is "{t}" called in {l}? Answer with the {l} name only.'
BACK = 'What is "{t}" called in English? Answer with the English name only.'
MOST_WORDS = 8
FEWEST_LETTERS = 4
_ARTICLES = re.compile(
    r"^(?:(?:der|die|das|les?|la|el|los|las|il|lo|gli|i|os?|as?|de|het)\s+|l['’])(?=.*\s)", re.I
)
_MARKS = " \t'’‘\"“”„«»*.:"


def asked(name: str) -> list[str]:
    """The questions for the name of a concept in each of LANGUAGES."""
    return [ASKED.replace("{t}", name).replace("{l}", language) for language in LANGUAGES]


def told(answers: Iterable[str], names: Sequence[str]) -> list[str]:
    """The names in the answers that are others than `names`, the same name once."""
    known = mentions(names)
    found: dict[str, str] = {}
    for answer in answers:
        lines = answer.strip().splitlines()
        name = lines[0].strip(_MARKS) if lines else ""
        fits = len(name) <= MAX_NAME and len(name.split()) <= MOST_WORDS and name.isprintable()
        if fits and sum(map(str.isalpha, name)) >= FEWEST_LETTERS and not known.search(name):
            found.setdefault(name.casefold(), name)
    return list(found.values())


def back(found: Iterable[str]) -> list[str]:
    """The questions for what these names mean in English."""
    return [BACK.replace("{t}", name) for name in found]


def without_article(name: str) -> str:
    """A name of several words without the article before it."""
    return _ARTICLES.sub("", name)
