"""JSON text in a string of a body, whose values are read and rewritten one by one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from server.screening.bodies.scanner import (
    JsonScanner,
    Leaf,
    beginning,
    block_of_json,
    quoted,
    unquoted,
)

MAX_BLOCKS = 8
"""Blocks of code of one text that are read as JSON; what follows is read as text."""


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
        self._equal: dict[int, list[int]] = {}

    @classmethod
    def of(cls, holder: Any, key: Any, raw: str) -> JsonDocument | None:
        """The document in a string; None where it is not JSON from its beginning on, and has no
        block of code that is.

        JSON that breaks off counts, and so does a text behind JSON that is whole.
        """
        leaves: list[Leaf] = []
        start = beginning(raw)
        if start is None or start < 0:
            start = block_of_json(raw) if "`" in raw else None
            if start is None:
                return None
            leaves.append(Leaf("plain", "", 0, start))
        for _ in range(MAX_BLOCKS):
            found = _leaves_from(raw, start)
            if found is None:
                return None
            leaves += found
            following = None
            if leaves and leaves[-1].kind == "plain":
                following = block_of_json(raw, leaves[-1].start)
            if following is None:
                break
            leaves[-1].end = start = following
        return cls(holder, key, raw, leaves)

    def text(self, leaf: Leaf) -> str:
        """The value of a leaf, as a reader of the JSON gets it; a number as it is spelled."""
        spelled = self._raw[leaf.start : leaf.end]
        return unquoted(spelled) if leaf.kind in {"text", "name"} else spelled

    def __setitem__(self, index: int, text: str) -> None:
        for equal in (index, *self._equal.get(index, ())):
            self._changes[equal] = text

    def distinct(self) -> Iterator[tuple[int, Leaf, str]]:
        """The leaves with their indices and texts; a name that many objects have comes once."""
        names: dict[str, int] = {}
        for index, leaf in enumerate(self.leaves):
            text = self.text(leaf)
            if leaf.kind == "name" and (first := names.setdefault(text, index)) != index:
                self._equal.setdefault(first, []).append(index)
            elif text:
                yield index, leaf, text

    def lists_of_numbers(self) -> Iterator[list[str]]:
        """The numbers that follow each other, without a text or a name between them."""
        for is_number, leaves in groupby(self.leaves, lambda leaf: leaf.kind == "number"):
            if is_number:
                yield [self.text(leaf) for leaf in leaves]

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


class ObjectNames:
    """The names of an object. A new one for `name` is assigned to `names[name]`; `write_back` puts
    all into the object, in whose values nothing may be written by the old names any more."""

    def __init__(self, members: dict[str, Any]) -> None:
        self._members = members
        self._changes: dict[str, str] = {}

    def __setitem__(self, name: str, new: str) -> None:
        self._changes[name] = new

    def write_back(self) -> None:
        """Rename the members, in their order. A name that another member has is not given again."""
        taken = self._members.keys()
        changes = {name: new for name, new in self._changes.items() if new not in taken}
        if changes:
            renamed = [(changes.get(name, name), item) for name, item in self._members.items()]
            self._members.clear()
            self._members.update(renamed)


def _leaves_from(raw: str, start: int) -> list[Leaf] | None:
    """The leaves of the JSON that begins at `start`, and of the text behind it; None where it turns
    out to be none."""
    scanner = JsonScanner(start)
    scanner.feed(raw[start:])
    if scanner.is_plain and scanner.is_nested:
        return None
    scanner.finish()
    return None if scanner.is_plain and scanner.is_nested else scanner.leaves
