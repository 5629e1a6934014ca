"""The end of a text that comes in pieces: what may still become a match, or a placeholder."""

from __future__ import annotations

from classifiers.text.patterns.matching import PatternSet
from classifiers.text.patterns.streams import OpenEnd
from server.screening.texts.redaction import Placeholders


class OpenText:
    """The open end of one text: under `patterns`, and for `placeholders` where they are to be
    restored.

    What stands before it can leave: nothing that follows makes it a part of a match. At most
    `longest` characters are open.
    """

    def __init__(
        self, patterns: PatternSet | None, placeholders: Placeholders | None, longest: int
    ) -> None:
        self._patterns, self._placeholders, self._longest = patterns, placeholders, longest
        self._end = OpenEnd(patterns) if patterns is not None else None
        self.start = 0
        """The position in the text from which it is open."""
        self.is_cut = False
        """Whether more than `longest` characters were open once: the first of a match left."""

    def update(self, text: str, base: int) -> int:
        """The position from which the text is open; `text` is what has come from `base` on."""
        start = length = base + len(text)
        if self._end is not None:
            start = self._end.update(text, base)
        if self._placeholders is not None:
            tail = text[-self._placeholders.max_length :]
            start = min(start, length - self._placeholders.partial_length(tail))
        self.is_cut = self.is_cut or start < length - self._longest
        self.start = max(self.start, start, length - self._longest)
        return self.start

    def context(self, text: str, position: int) -> int:
        """From where in `text` it must be read to find what begins at `position` or later."""
        return self._patterns.context_from(text, position) if self._patterns else position
