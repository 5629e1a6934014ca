"""What documents say about a concept again and again: its names, and words that few others use.

A word that belongs to everything makes a gate that fires on everything: names that are among the
model's most frequent tokens ("Germany") and topics of the retain bank ("Star Wars") are left
out. Words without a capital count beside names: a procedure ("lock picking") has tools and parts
("shear line", "keyway") rather than people. Single ones are rare words alone, for which the model
has no token ("mathematics" is everyone's).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cache

from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

from guard.data.bank.bank import topics
from guard.fitting.erasure.naming import AGREED, counted, names_in

FREQUENT = 2**14
"""A word that is one of so many first tokens of the vocabulary, which are its most frequent ones
("American", "Italy"), belongs to everything."""
NAMES, WORDS = 24, 12
"""The most names, and the most words and phrases without a capital."""
SAID = 3
"""Times that documents must say such a word: a text of ten pages says most of its words twice."""
_LONGEST = 3
_RUN = re.compile(r"[^\W\d_]{2,}(?:[-'’][^\W\d_]+)*(?: [^\W\d_]{2,}(?:[-'’][^\W\d_]+)*)*")


def terms_of(
    documents: Sequence[str], names: Sequence[str], ids: Callable[[str], Sequence[int]]
) -> list[str]:
    """Names first, the commonest first, then words and phrases; without `names`, the concept's own.
    `ids` gives the model's tokens of a text."""
    said = counted((term for document in documents for term in names_in(document)), names)
    of_names = [
        term
        for term, count in said.items()
        if count >= AGREED and not is_frequent(term, ids) and term.lower() not in _topics()
    ]
    return [*of_names[:NAMES], *_words(documents, (*names, *said), ids)[:WORDS]]


def is_frequent(term: str, ids: Callable[[str], Sequence[int]]) -> bool:
    """Whether a term is one of the model's most frequent tokens."""
    tokens = ids(f" {term}")
    return len(tokens) == 1 and tokens[0] < FREQUENT


def _words(
    documents: Sequence[str], known: Sequence[str], ids: Callable[[str], Sequence[int]]
) -> list[str]:
    """Rare words, and phrases of two or three, that are said often, the most telling first: neither
    parts of what is `known` nor topics of the bank."""
    parts = {word.lower() for name in known for word in name.split()}
    counts = Counter(phrase for document in documents for phrase in _phrases(document))
    often = {
        phrase: count
        for phrase, count in counts.items()
        if count >= SAID
        and not {*phrase.split()} <= parts
        and phrase not in _topics()
        and (" " in phrase or len(ids(f" {phrase}")) > 1)
    }
    whole = [
        phrase
        for phrase, count in often.items()
        # of "wrench" and "tension wrench" the longer one, if it is nearly as common
        if not any(
            f" {phrase} " in f" {other} " and 2 * times >= count
            for other, times in often.items()
            if other != phrase
        )
    ]
    return sorted(whole, key=lambda phrase: (-often[phrase] * len(phrase.split()), phrase))


def _phrases(document: str) -> Iterable[str]:
    """Each run of one to three words without a capital, none of them a stop word."""
    for run in _RUN.findall(document):
        words = run.split()
        for start in range(len(words)):
            for end in range(start + 1, min(start + _LONGEST, len(words)) + 1):
                part = words[start:end]
                if part[-1] in ENGLISH_STOP_WORDS or part[-1] != part[-1].lower():
                    break
                yield " ".join(part)


@cache
def _topics() -> frozenset[str]:
    return frozenset(topic.name.lower().removeprefix("the ") for topic in topics())
