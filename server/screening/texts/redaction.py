"""Placeholders for what is cut out: the same text has the same one, and they can be put back."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from functools import cached_property

from server.screening.streams.hold_back import Span

_PLACEHOLDER = re.compile(r"\[[A-Z][A-Z0-9_]*_\d+\]")


class Placeholders:
    """Those of one request and its answer; `texts` are all that the request says.

    A placeholder is `[EMAIL_1]`: the label of what it stands for, and a number that no text of the
    request has under that label. What can be put back is what `seal` finds there: not what is cut
    out of the answer itself.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = [*texts]
        self._by_text: dict[tuple[str, str], str] = {}
        self._originals: dict[str, str] = {}
        self._restorable: dict[str, str] = {}
        self._numbers: dict[str, int] = {}

    @cached_property
    def _taken(self) -> set[str]:
        # most requests have nothing cut out of them
        return {found for text in self._texts for found in _PLACEHOLDER.findall(text)}

    @property
    def longest(self) -> int:
        """Characters of the longest one that can be put back."""
        return max(map(len, self._restorable), default=0)

    def seal(self) -> None:
        """The request has been read."""
        self._restorable = dict(self._originals)

    def of(self, label: str, original: str) -> str:
        """The placeholder of a text."""
        known = self._by_text.get((label, original))
        if known is not None:
            return known
        while True:
            number = self._numbers[label] = self._numbers.get(label, 0) + 1
            placeholder = f"[{label}_{number}]"
            if placeholder not in self._taken:
                break
        self._by_text[label, original] = placeholder
        self._originals[placeholder] = original
        return placeholder

    def redacted(self, text: str, spans: Sequence[Span], *, quoted: bool = False) -> str:
        """The text with `replacement` for `spans`, which are in order and do not overlap."""
        out, at = [], 0
        for span in spans:
            stood = text[span.start : span.end]
            out += [text[at : span.start], self.replacement(span, stood, quoted=quoted)]
            at = span.end
        return "".join([*out, text[at:]])

    def replacement(self, span: Span, text: str, *, quoted: bool = False) -> str:
        """What leaves in the place of a span: of one that `find` gives the original, escaped where
        it goes into a string of JSON, of any other its placeholder."""
        original = self._restorable.get(span.label)
        if original is None:
            return self.of(span.label, text)
        return json.dumps(original, ensure_ascii=False)[1:-1] if quoted else original

    def begun(self, text: str) -> int:
        """How many characters at the end of `text` begin one that can be put back."""
        at = text.rfind("[", max(0, len(text) - self.longest))
        tail = text[at:] if at >= 0 else ""
        return len(tail) if any(each.startswith(tail) for each in self._restorable) else 0

    def find(self, text: str) -> list[Span]:
        """Where those that can be put back stand; a span's label is the placeholder itself."""
        return [
            Span(found.start(), found.end(), found[0])
            for found in _PLACEHOLDER.finditer(text)
            if found[0] in self._restorable
        ]
