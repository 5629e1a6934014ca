"""Nouns for what an image can show, as a tree: WordNet's things (`extract` beside this file)."""

from __future__ import annotations

import lzma
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

FILE = Path(__file__).parent / "things.tsv.xz"

THINGS = frozenset(
    ("animal", "artifact", "food", "object", "plant", "body", "person", "phenomenon")
)
"""Files of senses that one can point at: no substance, shape or colour."""


@dataclass(frozen=True)
class Word:
    """A word of a sense: `number` says which of the word's senses it is, from 1, `uses` how often
    it is used in that sense in WordNet's texts."""

    text: str
    number: int
    uses: int

    @property
    def proper(self) -> bool:
        """Whether it is the name of one: every part begins with a capital."""
        return all(part[0].isupper() for part in self.text.split())


@dataclass(frozen=True)
class Sense:
    """One meaning: its place in the list of all, words, definition and the senses over it."""

    at: int
    file: str
    words: tuple[Word, ...]
    above: tuple[int, ...]
    gloss: str

    @property
    def uses(self) -> int:
        return sum(word.uses for word in self.words)

    @property
    def first(self) -> list[Word]:
        """The words that mean this before anything else."""
        return [word for word in self.words if word.number == 1]


class Nouns:
    """All senses, and the tree that they form."""

    def __init__(self, senses: Sequence[Sense]) -> None:
        self._senses = senses
        self._of: dict[str, list[tuple[int, int]]] = defaultdict(list)
        self._under: dict[int, list[int]] = defaultdict(list)
        self._above = {sense.at: list(sense.above) for sense in senses}
        for sense in senses:
            for word in sense.words:
                self._of[word.text.lower()].append((word.number, sense.at))
            for over in sense.above:
                self._under[over].append(sense.at)

    def __iter__(self) -> Iterator[Sense]:
        return iter(self._senses)

    def senses(self, word: str) -> list[Sense]:
        """The senses of a word, the commonest first; empty for one that is not known."""
        return [self._senses[at] for _, at in sorted(self._of.get(word.lower(), ()))]

    def below(self, sense: Sense) -> list[Sense]:
        """The kinds of a sense, the nearest first, without itself."""
        return self._reached(sense, self._under)

    def over(self, sense: Sense) -> list[Sense]:
        """What a sense is a kind of, the nearest first, without itself."""
        return self._reached(sense, self._above)

    def siblings(self, sense: Sense, levels: int = 3) -> list[Sense]:
        """Other kinds of what the sense is a kind of, up to `levels` over it, the nearest first.

        None is a kind of the sense, or what it is a kind of.
        """
        own = {sense.at, *(each.at for each in (*self.below(sense), *self.over(sense)))}
        found: dict[int, Sense] = {}
        for over in self.over(sense)[:levels]:
            for each in self.below(over):
                if each.at not in own:
                    found.setdefault(each.at, each)
        return list(found.values())

    def sharing(self, word: str) -> list[tuple[Word, Sense]]:
        """Longer words that begin or end with `word`, or have it as a part, with their senses."""
        word = word.lower()
        return [
            (each, sense)
            for sense in self._senses
            for each in sense.words
            if (text := each.text.lower()) != word
            and (word in text.split() or text.startswith(word) or text.endswith(word))
        ]

    def _reached(self, sense: Sense, relation: dict[int, list[int]]) -> list[Sense]:
        reached: dict[int, None] = {}
        waiting = list(relation.get(sense.at, ()))
        while waiting:
            at = waiting.pop(0)
            if at not in reached and at != sense.at:
                reached[at] = None
                waiting += relation.get(at, ())
        return [self._senses[at] for at in reached]


@cache
def nouns() -> Nouns:
    """The nouns that come with the program."""
    text = lzma.decompress(FILE.read_bytes()).decode()
    return Nouns([sense_of(at, line) for at, line in enumerate(text.splitlines())])


def sense_of(at: int, line: str) -> Sense:
    """A line of the extract."""
    file, words, above, gloss = line.split("\t")
    split = (word.rsplit("|", 2) for word in words.split(","))
    return Sense(
        at,
        file,
        tuple(Word(text, int(number), int(uses)) for text, number, uses in split),
        tuple(map(int, above.split())),
        gloss,
    )


def with_article(text: str) -> str:
    """ "dog" is "a dog"; a phrase that has an article, a number or a possessive keeps it."""
    first = text.split()[0].lower()
    if first in _DETERMINERS:
        return text
    return f"an {text}" if first[0] in "aeiou" else f"a {text}"


_DETERMINERS = frozenset(
    (
        *("a", "an", "the", "any", "one", "two", "three", "some", "several", "many", "my", "your"),
        *("his", "her", "our", "their", "something", "someone"),
    )
)
