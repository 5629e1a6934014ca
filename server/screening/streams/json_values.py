"""The values of JSON in a stream: what a reader of the JSON gets, and how it is spelled."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from server.screening.bodies.scanner import Leaf, quoted, unquoted
from server.screening.streams.hold_back import TextBuffer
from server.screening.texts.joins import REACH

_PIECE: Final = re.compile(
    r"[^\\]++|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|\\u[0-9a-fA-F]{4}|\\.?",
    re.DOTALL,
)
_WIDEST_ESCAPE: Final = 12
_HIGH_SURROGATE: Final = re.compile(r"\\u[dD][89abAB]..", re.DOTALL)


@dataclass(slots=True, eq=False)
class JsonValue:
    """A value in a channel: `buffer` has its text as a reader of the JSON gets it.

    `decoded` is the position in the channel up to which its spelling has been decoded. `head` and
    `tail` are the ends of the text.
    """

    leaf: Leaf
    buffer: TextBuffer
    decoded: int
    head: str = ""
    tail: str = ""
    _offsets: list[tuple[int, int]] = field(default_factory=lambda: [(0, 0)])
    """Positions in the text, and in its spelling, from each of which both count alike."""
    _taken: int = 0
    _is_finished: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether all of it has come."""
        return self._is_finished

    @property
    def short_text(self) -> str | None:
        """The text so far of a string, None for other values and for long ones."""
        return self.head if self.leaf.kind == "text" and self.head == self.tail else None

    @property
    def end(self) -> int | None:
        """The position in the channel of its end; None where not all of it has come."""
        return self.leaf.end if self.is_whole else None

    @property
    def free(self) -> int:
        """The position in the channel up to which it may be sent."""
        return self.leaf.start + self._spelled(self.buffer.free)

    @property
    def kept(self) -> int:
        """The position in the channel from which on its spelling is needed."""
        return self.leaf.start + self._spelled(self._taken)

    def add(self, text: str, base: int, scanned: int) -> bool:
        """Decode what has come of it, up to `scanned`; the channel has `text` from `base` on.

        Return whether it has become whole.
        """
        if self._is_finished:
            return False
        end = scanned if self.leaf.end is None else self.leaf.end
        if end > self.decoded:
            spelling = text[self.decoded - base : end - base]
            if self.leaf.kind in {"plain", "number"}:
                self.buffer.add(spelling)
                self.decoded = end
            else:
                self._decode(spelling, is_end=self.leaf.end is not None)
        if self.leaf.end is None or self.decoded < self.leaf.end:
            return False
        self._is_finished = True
        self.buffer.finish()
        self.buffer.release()
        return True

    def take(self, end: int, spelling: Callable[[int, int], str]) -> str:
        """What is to be sent for the characters of the channel up to `end`; `spelling` has them as
        they came."""
        position = self._position(end - self.leaf.start)
        original = self.buffer.original(self._taken, position)
        text = self.buffer.take(position)
        if text == original:
            start = self.leaf.start
            text = spelling(start + self._spelled(self._taken), start + self._spelled(position))
        elif self.leaf.kind in {"text", "name"}:
            text = quoted(text)
        self._taken = position
        if len(self._offsets) > 256 and self._offsets[128][0] < position:
            del self._offsets[:128]
        return text

    def _decode(self, spelling: str, *, is_end: bool) -> None:
        for piece in _PIECE.finditer(spelling):
            left = len(spelling) - piece.start()
            is_escape = piece[0][0] == "\\"
            if not is_end and is_escape and left < _WIDEST_ESCAPE and _may_grow(piece[0], left):
                break
            text = unquoted(piece[0]) if is_escape else piece[0]
            self.buffer.add(text)
            self.head += text[: REACH - len(self.head)]
            self.tail = (self.tail + text)[-REACH:]
            self.decoded += len(piece[0])
            if len(text) != len(piece[0]):
                self._offsets.append((self.buffer.length, self.decoded - self.leaf.start))

    def _spelled(self, position: int) -> int:
        """The place in the spelling of a position in the text."""
        if len(self._offsets) == 1:
            return position
        index = bisect_right(self._offsets, position, key=lambda pair: pair[0]) - 1
        at, spelled = self._offsets[index]
        return spelled + position - at

    def _position(self, spelled: int) -> int:
        """The characters of the text that are spelled before a place in the spelling."""
        index = bisect_right(self._offsets, spelled, key=lambda pair: pair[1]) - 1
        at, begun = self._offsets[index]
        position = at + spelled - begun
        if index + 1 < len(self._offsets):
            # where the place is in an escape, this is not over
            position = min(position, self._offsets[index + 1][0] - 1)
        return min(position, self.buffer.length)


def _may_grow(escape: str, left: int) -> bool:
    """Whether an escape that begins `left` characters before the end of a text may go on."""
    if escape[1:2] != "u":
        return left < 2
    return len(escape) < 6 and left < 6 or _HIGH_SURROGATE.fullmatch(escape) is not None
