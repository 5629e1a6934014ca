"""Placeholders for redacted text: equal texts have the same one, and the original can return."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from functools import cached_property

from server.screening.streams.hold_back import Span

_PLACEHOLDER = re.compile(r"\[[A-Z][A-Z0-9_]*_\d+\]")


class Placeholders:
    """The placeholders of one request and its response; `texts` are all texts of the request.

    A placeholder is `[EMAIL_1]`: the label of the redacted text, and a number that no text of the
    request has under that label. Those of the request, up to `seal`, can be restored in the
    response; those of redactions in the response itself cannot.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = [*texts]
        self._by_text: dict[tuple[str, str], str] = {}
        self._originals: dict[str, str] = {}
        self._restorable: dict[str, str] = {}
        self._last_numbers: dict[str, int] = {}

    @cached_property
    def _taken(self) -> set[str]:
        # most requests have nothing to be redacted
        return {name for text in self._texts for name in _PLACEHOLDER.findall(text)}

    @property
    def max_length(self) -> int:
        """Characters of the longest placeholder that can be restored."""
        return max(map(len, self._restorable), default=0)

    def seal(self) -> None:
        """The request has been read: only its placeholders can be restored."""
        self._restorable = dict(self._originals)

    def placeholder_for(self, label: str, original: str) -> str:
        """The placeholder of a text."""
        known = self._by_text.get((label, original))
        if known is not None:
            return known
        while True:
            number = self._last_numbers[label] = self._last_numbers.get(label, 0) + 1
            placeholder = f"[{label}_{number}]"
            if placeholder not in self._taken:
                break
        self._by_text[label, original] = placeholder
        self._originals[placeholder] = original
        return placeholder

    def redact(self, text: str, spans: Sequence[Span], *, quoted: bool = False) -> str:
        """The text with the replacements of `spans`, which are in order and do not overlap."""
        parts, position = [], 0
        for span in spans:
            original = text[span.start : span.end]
            parts += [text[position : span.start], self.replacement(span, original, quoted=quoted)]
            position = span.end
        return "".join([*parts, text[position:]])

    def replacement(self, span: Span, text: str, *, quoted: bool = False) -> str:
        """The replacement of a span that holds `text`.

        For a span from `find` that is the original, escaped where `quoted` says that it goes into
        a string of JSON; for any other span its placeholder.
        """
        original = self._restorable.get(span.label)
        if original is None:
            return self.placeholder_for(span.label, text)
        return json.dumps(original, ensure_ascii=False)[1:-1] if quoted else original

    def partial_length(self, text: str) -> int:
        """Characters at the end of `text` that may begin a placeholder that can be restored."""
        start = text.rfind("[", max(0, len(text) - self.max_length))
        tail = text[start:] if start >= 0 else ""
        return len(tail) if any(name.startswith(tail) for name in self._restorable) else 0

    def find(self, text: str) -> list[Span]:
        """The placeholders that can be restored; the label of such a span is the placeholder."""
        return [
            Span(match.start(), match.end(), match[0])
            for match in _PLACEHOLDER.finditer(text)
            if match[0] in self._restorable
        ]
