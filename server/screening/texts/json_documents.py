"""JSON text in a string of a body, whose values are read and rewritten one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from server.screening.texts.json_scanner import JsonScanner, Leaf, beginning, quoted, unquoted


class Number(str):
    """A text that stands as a number in JSON."""


class JsonDocument:
    """The values of JSON text, in a string `holder[key]` of a body.

    A new text for the value at an index is assigned to `document[index]`; `write_back` puts all
    new texts into the string.
    """

    def __init__(self, holder: Any, key: Any, raw: str, leaves: Sequence[Leaf]) -> None:
        self.leaves = leaves
        self._holder, self._key, self._raw = holder, key, raw
        self._changes: dict[int, str] = {}

    @classmethod
    def of(cls, holder: Any, key: Any, raw: str) -> JsonDocument | None:
        """The document in a string; None where it is not JSON from its beginning on.

        JSON that breaks off counts, and so does a text behind JSON that is whole.
        """
        start = beginning(raw)
        if start is None or start < 0:
            return None
        scanner = JsonScanner()
        scanner.feed(raw[:start] and " " * start)
        scanner.feed(raw[start:])
        if scanner.is_plain and scanner.is_nested:
            return None
        scanner.finish()
        if scanner.is_plain and scanner.is_nested:
            return None
        return cls(holder, key, raw, scanner.leaves)

    def text(self, leaf: Leaf) -> str:
        """The value of a leaf, as a reader of the JSON gets it; a number as it is spelled."""
        spelled = self._raw[leaf.start : leaf.end]
        return unquoted(spelled) if leaf.kind in {"text", "name"} else spelled

    def __setitem__(self, index: int, text: str) -> None:
        self._changes[index] = text

    def write_back(self) -> None:
        """Put all changes into the string, which stays as it is but for them."""
        if not self._changes:
            return
        parts, position = [], 0
        for index in sorted(self._changes):
            leaf, text = self.leaves[index], self._changes[index]
            start, end = leaf.start, len(self._raw) if leaf.end is None else leaf.end
            if leaf.kind == "text" and isinstance(text, Number):
                start, end = start - 1, end + 1  # its quotes go
            elif leaf.kind in {"text", "name"}:
                text = quoted(text)
            elif leaf.kind == "number" and not isinstance(text, Number):
                text = f'"{quoted(text)}"'
            parts += [self._raw[position:start], text]
            position = end
        self._holder[self._key] = "".join([*parts, self._raw[position:]])
