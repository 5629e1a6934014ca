"""Long texts in overlapping parts: what reads them takes bounded time for each."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, NamedTuple

SIZE: Final = 1000
"""The most characters of a part."""
OVERLAP: Final = 150
"""Characters that two parts have in common: no name is longer."""
_LAST_SPACE: Final = re.compile(r"\s(?=\S*\Z)")
_SPACE: Final = re.compile(r"\s")


class Chunk(NamedTuple):
    """A part of a text that begins at `start`."""

    start: int
    text: str


def chunks_of(text: str) -> Iterator[Chunk]:
    """The parts of a text, cut between words where there is a space in the common part."""
    start = 0
    while len(text) - start > SIZE:
        limit = start + SIZE
        space = _LAST_SPACE.search(text, limit - OVERLAP // 2, limit)
        end = space.start() if space else limit
        yield Chunk(start, text[start:end])
        again = _SPACE.search(text, end - OVERLAP, end)
        start = again.end() if again else end - OVERLAP
    yield Chunk(start, text[start:])
