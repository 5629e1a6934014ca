"""A recogniser of entities, as Presidio has it, on a model that is loaded once."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, Final

from classifiers.text.disguises.views import PLAIN
from classifiers.text.entities.chunks import chunks_of
from classifiers.text.patterns.matching import Match, without_overlaps

Analyze = Callable[[str], Iterable[Any]]
"""The results of Presidio's (`presidio_analyzer.RecognizerResult`) for a text of one chunk."""
_PLACEHOLDER: Final = re.compile(
    r"(?:\\?\[|%5B)?[A-Z][A-Z0-9]*(?:\\?_[A-Z0-9]+)*\\?_[0-9]+(?:\\?\]|%5D)?"
)
"""What stands for a text that was cut out ("[PERSON_1]"), however a model spells it."""
_LETTER: Final = re.compile(r"[^\W\d_]")
_HALF: Final = re.compile("[\ud800-\udfff]")
"""Half a character, which no model reads: JSON has it alone, a stream in two events."""


class EntityRecognizer:
    """Finds entities by a model, in any thread. A text is read as it stands: no disguise is undone.

    `entities` are the names that count, as Presidio has them ("PERSON"); `analyze` is not called by
    two threads at once.
    """

    def __init__(self, analyze: Analyze, entities: Collection[str]) -> None:
        self._analyze, self._entities = analyze, frozenset(entities)
        self._lock = threading.Lock()

    def find(self, text: str) -> list[Match]:
        """The entities in order and without overlaps, in time linear in the text.

        Each has the model's confidence, or Presidio's 0.85 where the model has none. Raises what
        the model raises.
        """
        matches: list[Match] = []
        for start, chunk in chunks_of(_HALF.sub("\ufffd", text)):
            found = [each for each in self._found(chunk) if each.entity_type in self._entities]
            holes = [hole.span() for hole in _PLACEHOLDER.finditer(chunk)] if found else []
            for each in found:
                for first, last in _without_holes(chunk, holes, each.start, each.end):
                    place = start + first, start + last
                    matches.append(Match(*place, each.entity_type, PLAIN, float(each.score)))
        return without_overlaps(matches)

    def _found(self, chunk: str) -> list[Any]:
        if not chunk or chunk.isspace():
            return []
        with self._lock:
            return list(self._analyze(chunk))


def _without_holes(
    text: str, holes: Sequence[tuple[int, int]], start: int, end: int
) -> Iterator[tuple[int, int]]:
    """What is left of text[start:end] beside `holes`, which are in order."""
    for first, last in holes:
        if last <= start:
            continue
        if first >= end:
            break
        if _LETTER.search(text, start, first):
            yield start, first
        start = last
    if start < end and _LETTER.search(text, start, end):
        yield start, end


def require_known(entities: Collection[str], found: Collection[str]) -> None:
    """Raise ValueError where a model does not find one of `entities`; `found` are Presidio's names
    for what it finds."""
    if missing := sorted(set(entities) - set(found)):
        known = ", ".join(sorted(found)) or "no entities"
        raise ValueError(
            f"the model does not find {', '.join(missing)}, but {known}: name these in 'entities', "
            "or take another model"
        )


def one_line(error: Exception) -> str:
    """What an error of a library says."""
    return " ".join(str(error).split())[:300]
