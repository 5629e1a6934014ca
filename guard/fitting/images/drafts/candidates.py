"""Phrases that may ask for a concept and phrases that may only resemble it, from WordNet.

Whether a phrase does is the model's to say: `draft` beside this file keeps those that it draws so.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from guard.data.nouns.nouns import THINGS, Nouns, Sense, Word, with_article
from guard.fitting.images.drafts.naming import Named

KINDS, DEFINITIONS = 45, 9
SIBLINGS, COMPOUNDS, ALIKE, COMPANIONS = 48, 36, 24, 140
COMMON = 3
"""Uses in WordNet's texts from which a word is common."""
BESIDE = frozenset(("animal", "artifact", "food", "object", "plant"))
"""Files of what stands beside a concept."""
_SIZES = ("a little {0}", "a big {0}", "an old {0}")
_COLOURED = ("chair", "wall", "car", "dress", "flower", "door", "ball", "bird")


@dataclass(frozen=True)
class Candidates:
    """`name` is how the concept is asked for, `certain` are names that are taken as they are.

    `sense` is the meaning that was taken, None for a name that WordNet does not know; `others` are
    the name's other meanings.
    """

    name: str
    certain: tuple[str, ...]
    phrases: tuple[str, ...]
    near: tuple[str, ...]
    siblings: tuple[str, ...]
    companions: tuple[str, ...]
    sense: Sense | None
    others: tuple[Sense, ...]


def candidates(nouns: Nouns, concept: Named, seed: int = 0) -> Candidates:
    """Everything that WordNet has to say; each phrase is in one field only."""
    rng = random.Random(seed)
    sense, others = chosen_sense(nouns, concept)
    proper = sense is not None and _word_of(sense, concept.name).proper
    name = concept.name if proper else with_article(concept.name)
    given = concept.started
    certain = [name, *map(with_article, concept.phrases)]
    phrases: list[str] = []
    siblings: list[str] = []
    own: set[int] = set()
    if sense is not None:
        below, over = nouns.below(sense), nouns.over(sense)
        own = {sense.at, *(each.at for each in (*below, *over))}
        certain += [_phrase(word) for word in sense.first if word.text.islower() or proper]
        phrases += [_phrase(word) for word in sense.words]
        phrases += _kinds(below)
        phrases += [with_article(each.gloss) for each in (sense, *below[:DEFINITIONS])]
        near_ones = [each for each in nouns.siblings(sense) if each.file in THINGS]
        siblings = _commonest(near_ones)[:SIBLINGS]
    if not proper:
        phrases += [size.format(concept.name) for size in _SIZES]
        phrases += [_plural(concept.name), f"two {_plural(concept.name)}"]
    parts = [part for part in concept.name.lower().split() if len(part) > 2]
    near = [
        *_meanings(others, concept.name),
        *_compounds(nouns, (concept.name, *parts), own, rng),
        *_alike(nouns, concept.name),
    ]
    companions = [*_companions(nouns, own, parts, rng)]
    if given is not None:
        certain = [*given.phrases.train, *given.phrases.validation, *certain]
        near = [*given.hard_negatives, *near]
        siblings = [*given.replacements, *siblings]
        companions = [*given.companions, *companions]
    taken: set[str] = set()
    first = _fresh(certain, taken)
    return Candidates(
        name=first[0],
        certain=first,
        phrases=_fresh(phrases, taken),
        siblings=_fresh(siblings, taken),
        near=_fresh(near, taken),
        companions=_fresh(companions, taken),
        sense=sense,
        others=tuple(others),
    )


def chosen_sense(nouns: Nouns, concept: Named) -> tuple[Sense | None, list[Sense]]:
    """The meaning of a name, and its other ones: the first thing, of the given kind where one is.

    A name in small letters is rather that of a thing than one of the names of the sky.
    """
    senses = nouns.senses(concept.name)
    lower = concept.name.islower()
    things = [each for each in senses if each.file in THINGS]
    order = sorted(
        things,
        key=lambda each: (
            each.file != concept.kind,
            lower and _word_of(each, concept.name).proper,
        ),
    )
    if not order:
        return None, senses
    return order[0], [each for each in senses if each.at != order[0].at]


def _word_of(sense: Sense, name: str) -> Word:
    return next(word for word in sense.words if word.text.lower() == name.lower())


def _phrase(word: Word) -> str:
    return word.text if word.proper else with_article(word.text)


def _kinds(below: Iterable[Sense]) -> list[str]:
    return _commonest(below)[:KINDS]


def _commonest(senses: Iterable[Sense]) -> list[str]:
    """The name of each sense that is not rather the name of something else, the commonest first."""
    ordered = sorted(senses, key=lambda each: (-each.uses, len(each.words[0].text)))
    return [_phrase(each.words[0]) for each in ordered if each.words[0].number <= 2]


def _meanings(others: Iterable[Sense], name: str) -> Iterator[str]:
    """The name's other meanings in other words."""
    for sense in others:
        yield from (_phrase(word) for word in sense.words if word.text.lower() != name.lower())
        if sense.file == "attribute":
            yield from (f"{with_article(name)} {thing}" for thing in _COLOURED)
        elif len(sense.gloss.split()) <= 16:
            yield with_article(sense.gloss)


def _compounds(
    nouns: Nouns, names: Iterable[str], own: set[int], rng: random.Random
) -> Iterator[str]:
    """Other things whose names have a word of the concept's name."""
    for name in names:
        found = [(word, each) for word, each in nouns.sharing(name) if each.at not in own]
        found = rng.sample(found, min(len(found), 4 * COMPOUNDS))
        found.sort(key=lambda pair: (-pair[0].uses, len(pair[0].text)))
        yield from (_phrase(word) for word, _ in found[:COMPOUNDS])


def _alike(nouns: Nouns, name: str) -> list[str]:
    """Common words that differ from the name in one letter."""
    words = {
        word.text
        for sense in nouns
        for word in sense.words
        if word.uses and word.text.isalpha() and _one_apart(word.text.lower(), name.lower())
    }
    return [with_article(word) for word in sorted(words)][:ALIKE]


def _one_apart(word: str, name: str) -> bool:
    if len(word) != len(name) or len(name) < 3:
        return False
    return sum(a != b for a, b in zip(word, name, strict=True)) == 1


def _companions(
    nouns: Nouns, own: set[int], parts: Iterable[str], rng: random.Random
) -> Iterator[str]:
    """Common things, in any order."""
    named = set(parts)
    words = sorted(
        {
            word.text
            for sense in nouns
            if sense.file in BESIDE and sense.at not in own
            for word in sense.first
            if word.uses >= COMMON and word.text.islower() and not named & set(word.text.split())
        }
    )
    rng.shuffle(words)
    return (with_article(word) for word in words[:COMPANIONS])


def _plural(name: str) -> str:
    if name.endswith(("s", "x", "ch", "sh")):
        return f"{name}es"
    if name.endswith("y") and name[-2:-1] not in "aeiou":
        return f"{name[:-1]}ies"
    return f"{name}s"


def _fresh(phrases: Iterable[str], taken: set[str]) -> tuple[str, ...]:
    """The phrases that are not in `taken`, whatever their case; they are added to it."""
    kept = []
    for phrase in phrases:
        if phrase and len(phrase) <= 300 and phrase.lower() not in taken:
            taken.add(phrase.lower())
            kept.append(phrase)
    return tuple(kept)
