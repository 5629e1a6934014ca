"""Placeholders for redacted text: equal texts have the same one, and the original can return."""

from __future__ import annotations

import hashlib
import html
import re
import secrets
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Final
from urllib.parse import quote, unquote

from server.screening.spans import Span

_NAME: Final = re.compile(r"(?<![A-Z0-9_])[0-9_]*+([A-Z][A-Z0-9_]*_[0-9]+)")
_ENCODED: Final = re.compile(r"%5[BbDdFf]|&#(?:91|93|95);")
_SPELLED: Final = re.compile(
    # in brackets: as they are, with Markdown's escapes, in an address, as entities of HTML
    r"(?:(?P<escape>\\{1,2})(?=\[))?(?:\[|%5[Bb]|&#91;)"
    r"(?P<name>[A-Za-z](?:[A-Za-z0-9]|(?:\\{0,2}+_|%5[Ff]|&#95;|[ -](?=[0-9A-Za-z])))*+)"
    r"(?(escape)\\{1,2}+)(?:\]|%5[Dd]|&#93;)"
    # without any
    r"|(?<![A-Za-z0-9_\[\\])(?P<bare>[A-Z][A-Z0-9]*(?:\\?_[A-Z0-9]+)+)(?![A-Za-z0-9_])"
)
_MAY_BEGIN: Final = re.compile(r"[\[\\%&]|(?<![A-Za-z0-9_])[A-Z]")
_WIDEST: Final = 5
"""The most characters of one sign, in its longest spelling."""
_CONTINUED: Final = range(10**8, 10**9)
_KEY: Final = secrets.token_bytes(32)


class Placeholders:
    """The placeholders of one request and its response; `texts` are all texts of the request.

    A placeholder is `[EMAIL_1]`: the label of the redacted text, and a number that no text of the
    request has under that label. Those of the request, up to `seal`, can be restored in the
    response; those of redactions in the response itself cannot. A number of JSON has a placeholder
    of its own, which is restored as a number.

    `is_continued`: the upstream has kept earlier turns, whose placeholders are not known here. The
    numbers are then made of the redacted text, so that none is another text's.
    """

    def __init__(self, texts: Iterable[str], *, is_continued: bool = False) -> None:
        self._texts = [*texts]
        self._is_continued = is_continued
        self._by_text: dict[tuple[str, str, bool], str] = {}
        self._originals: dict[str, str] = {}
        self._restorable: dict[str, str] = {}
        self._numbers: set[str] = set()
        # those that can be restored, in order: an answer asks for them at every character
        self._restorable_names: list[str] = []
        self._restorable_numbers: list[str] = []
        self.max_length = 0
        """Characters of the longest placeholder that can be restored, in its longest spelling."""
        self._last_numbers: dict[str, int] = {}

    @cached_property
    def _taken(self) -> set[str]:
        # most requests have nothing to be redacted
        names = {name for text in self._texts for name in _NAME.findall(text)}
        spelled = (match["name"] for text in self._texts for match in _SPELLED.finditer(text))
        return names | {_plain(name) for name in spelled if name}

    def seal(self) -> None:
        """The request has been read: only its placeholders can be restored."""
        self._restorable = dict(self._originals)
        self._restorable_names = sorted(placeholder[1:-1] for placeholder in self._restorable)
        self._restorable_numbers = sorted(self._numbers)
        self.max_length = _WIDEST * max(map(len, self._restorable), default=0)

    def placeholder_for(self, label: str, original: str, *, is_number: bool = False) -> str:
        """The placeholder of a text."""
        known = self._by_text.get((label, original, is_number))
        if known is not None:
            return known
        while True:
            name = f"{label}_{self._next_number(label, original)}"
            placeholder = f"[{name}]"
            if name not in self._taken and placeholder not in self._originals:
                break
        self._by_text[label, original, is_number] = placeholder
        self._originals[placeholder] = original
        if is_number:
            self._numbers.add(placeholder)
        return placeholder

    def redact(self, text: str, spans: Sequence[Span], *, is_number: bool = False) -> str:
        """The text with the replacements of `spans`, which are in order and do not overlap."""
        parts, position = [], 0
        for span in spans:
            original = text[span.start : span.end]
            parts += [
                text[position : span.start],
                self.replacement(span, original, is_number=is_number),
            ]
            position = span.end
        return "".join([*parts, text[position:]])

    def replacement(self, span: Span, text: str, *, is_number: bool = False) -> str:
        """The replacement of a span that holds `text`.

        For a span from `find` that is the original, percent-encoded where the placeholder is; for
        any other span its placeholder.
        """
        original = self._restorable.get(span.label)
        if original is None:
            return self.placeholder_for(span.label, text, is_number=is_number)
        return quote(original, safe="@") if "%5" in text else original

    def number(self, text: str) -> str | None:
        """The number that a text stands for as a whole, None for any other text."""
        return self._restorable.get(text) if text in self._numbers else None

    def begins_number(self, text: str) -> bool:
        """Whether a text may go on to be one that stands for a number."""
        return _any_begins(self._restorable_numbers, text)

    def partial_length(self, text: str) -> int:
        """Characters at the end of `text` that may begin a placeholder that can be restored."""
        if not self._restorable:
            return 0
        start = max(0, len(text) - self.max_length)
        for begins in _MAY_BEGIN.finditer(text, start):
            if self._may_become(text[begins.start() :]):
                return len(text) - begins.start()
        return 0

    def find(self, text: str) -> list[Span]:
        """The placeholders that can be restored, in any spelling; the label of such a span is the
        placeholder."""
        if not self._restorable:
            return []
        return [
            Span(match.start(), match.end(), placeholder)
            for match in _SPELLED.finditer(text)
            if (placeholder := f"[{_plain(match['name'] or match['bare'])}]") in self._restorable
        ]

    def _next_number(self, label: str, original: str) -> int:
        last = self._last_numbers.get(label, 0)
        if self._is_continued and (label, original) not in self._tried:
            self._tried.add((label, original))
            digest = hashlib.blake2b(f"{label}\0{original}".encode("utf-8", "replace"), key=_KEY)
            return _CONTINUED[int.from_bytes(digest.digest()[:8]) % len(_CONTINUED)]
        if self._is_continued:
            return secrets.choice(_CONTINUED)
        self._last_numbers[label] = last + 1
        return last + 1

    @cached_property
    def _tried(self) -> set[tuple[str, str]]:
        return set()

    def _may_become(self, tail: str) -> bool:
        """Whether a text may go on to be a placeholder that can be restored."""
        # half a sign at its end
        tail = re.sub(r"(?:%5?|&(?:#9?[135]?)?|\\{1,2})\Z", "", tail)
        is_bare = tail[:1].isalpha()
        name = _plain(_ENCODED.sub(_sign, tail)).lstrip("[")
        return (not is_bare or tail.isupper()) and _any_begins(self._restorable_names, name)


def _any_begins(ordered: Sequence[str], beginning: str) -> bool:
    """Whether any of the texts, which are in order, begins so."""
    at = bisect_left(ordered, beginning)
    return at < len(ordered) and ordered[at].startswith(beginning)


def _sign(encoded: re.Match[str]) -> str:
    return html.unescape(unquote(encoded[0]))


def _plain(name: str) -> str:
    """The name of a placeholder as it was made, of one as a model spells it."""
    decoded = _ENCODED.sub(_sign, name).replace("\\", "")
    return decoded.replace(" ", "_").replace("-", "_").upper()
