"""The end of a text that comes in pieces, as far as it may still be part of a match."""

from __future__ import annotations

from classifiers.text.patterns.matching import PatternSet

_PATIENCE = 8
"""A part of the open text that must come before its beginning is read again."""


class OpenEnd:
    """Where the open end of one text begins, by `PatternSet.open_from`.

    Long matches under way are not read again at every piece, so that all of a text takes time
    linear in its length: their end is noticed when an eighth more has come.
    """

    def __init__(self, patterns: PatternSet) -> None:
        self._patterns = patterns
        self._due = 0
        self.start = 0
        """The position in the text from which it is open."""

    def update(self, text: str, base: int = 0) -> int:
        """The position from which the text is open.

        `text` is what has come from the position `base` on, with the open end and, where there is
        any, some text before it.
        """
        end = base + len(text)
        if end >= self._due:
            self.start = max(self.start, base + self._patterns.open_from(text))
            self._due = end + (end - self.start) // _PATIENCE
        return self.start
