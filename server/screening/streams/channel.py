"""A buffer for a channel whose text may be JSON: its values are held back and read one by one.

What stands between values leaves at once, and a value that stays as it is keeps its spelling.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

from server.screening.streams.hold_back import HoldBackBuffer, Window
from server.screening.texts.joins import REACH
from server.screening.texts.json_scanner import JsonScanner, Leaf, beginning, quoted, unquoted
from server.screening.texts.json_texts import context_of

MAX_NESTING: Final = 4
"""Levels of JSON in strings of JSON."""
_PIECE: Final = re.compile(
    r"[^\\]++|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|\\u[0-9a-fA-F]{4}|\\.?",
    re.DOTALL,
)
_WIDEST_ESCAPE: Final = 12
_HIGH_SURROGATE: Final = re.compile(r"\\u[dD][89abAB]..", re.DOTALL)


class MakeBuffer(Protocol):
    """Makes the buffer of one text."""

    def __call__(self, *, prefix: str = "", is_number: bool = False) -> HoldBackBuffer:
        """`prefix` is read before the text; a number is replaced as a whole, by a string."""


class Numbers(Protocol):
    """The strings in JSON that are to leave as numbers."""

    def number(self, text: str) -> str | None:
        """The number for a whole string, None where it stays."""

    def begins_number(self, text: str) -> bool:
        """Whether a string that begins so may be one of them."""


class ChannelBuffer:
    """As a HoldBackBuffer of the channel's whole text, JSON or not.

    `heads`: classifiers read JSON as it is spelled, since they need more than single values.
    """

    def __init__(
        self,
        make: MakeBuffer,
        *,
        numbers: Numbers | None = None,
        heads: bool = False,
        nesting: int = 0,
    ) -> None:
        self._make, self._nesting, self._numbers = make, nesting, numbers
        self._quote_at = -1
        self._heads = make() if heads else None
        self._text, self._base, self._sent = "", 0, 0
        self._scanner: JsonScanner | None = None
        self._fed = 0
        self._values: deque[_Value] = deque()
        self._unread: deque[_Value] = deque()
        # all of the text, where it is no JSON, as most texts are
        self._plain: HoldBackBuffer | None = None
        self._is_released = False
        self._before = ""
        self._seams: list[tuple[str, str]] = []

    @property
    def length(self) -> int:
        """Characters that have come."""
        return self._base + len(self._text) if self._plain is None else self._plain.length

    @property
    def sent(self) -> int:
        """Characters that have been sent."""
        return self._sent if self._plain is None else self._plain.sent

    @property
    def free(self) -> int:
        """The position up to which text may be sent."""
        if self._plain is not None:
            return self._plain.free
        while self._unread and self._unread[0].is_free:
            self._unread.popleft()
        if self._unread:
            free = self._unread[0].free
            if self._may_be_number(self._unread[0]):
                free = self._unread[0].leaf.start - 1  # its quote would go too
        elif self._scanner is not None:
            free = self._scanner.position
        else:
            free = self.length if self._is_released else self._fed
        if self._heads is not None:
            free = min(free, self._heads.free)
        return max(self._sent, free)

    @property
    def is_cut(self) -> bool:
        """Whether the text ends before its end: never here."""
        return False

    def add(self, text: str) -> None:
        """Append text that has come."""
        if self._plain is not None:
            self._plain.add(text)
            return
        self._text += text
        if self._heads is not None:
            self._heads.add(text)
        self._scan()

    def finish(self) -> None:
        """No more text comes."""
        if self._plain is None:
            self._decide(is_over=True)
        if self._scanner is not None:
            self._scanner.finish()
            self._take_leaves()
            # what comes nevertheless is no part of it
            self._scanner = None

    def due_windows(self, *, all: bool = False) -> Iterator[Window]:
        """The windows to be read now, in order; with `all` also one shorter than a stride."""
        if self._plain is not None:
            yield from self._plain.due_windows(all=all)
            return
        for value in list(self._unread):
            for window in value.buffer.due_windows(all=all or value.is_whole):
                yield window if self._heads is None else replace(window, screens="lists")
        if self._heads is not None:
            for window in self._heads.due_windows(all=all):
                yield replace(window, screens="heads")

    def take_seams(self) -> list[tuple[str, str]]:
        """The ends of each text of JSON that is new and whole, and of the one before it."""
        seams, self._seams = self._seams, []
        return seams

    def release(self, keep: int = 0) -> None:
        """Let all text that has been read be sent; the last `keep` characters stay."""
        if self._plain is not None:
            self._plain.release(keep)
            return
        self._is_released = True
        if self._heads is not None:
            self._heads.release()
        if self._unread:
            self._unread[-1].buffer.release(keep)

    def hold(self) -> None:
        """Undo `release`: more text comes."""
        if self._plain is not None:
            self._plain.hold()
            return
        self._is_released = False
        if self._heads is not None:
            self._heads.hold()
        if self._unread and not self._unread[-1].is_whole:
            self._unread[-1].buffer.hold()

    def tail(self, count: int) -> str:
        """The last characters that have come of a value that is not whole."""
        if self._plain is not None:
            return self._plain.tail(count)
        return self._unread[-1].buffer.tail(count) if self._unread else ""

    def original(self, start: int, end: int) -> str:
        """The text as it came, from the first character that has not been sent at the earliest."""
        if self._plain is not None:
            return self._plain.original(start, end)
        return self._text[start - self._base : end - self._base]

    def take(self, end: int) -> str:
        """The text to be sent for the characters up to `end`, which must be free."""
        if self._plain is not None:
            return self._plain.take(end)
        if end > self.free:
            raise ValueError(f"the characters up to {end} are not free: only {self.free} are")
        parts, position = [], self._sent
        while self._values:
            value = self._values[0]
            number = self._number(value)
            start = value.leaf.start - (number is not None)
            if start >= end:
                parts.append(self._between(position, end))
                break
            parts.append(self._between(position, max(position, start)))
            if number is not None and position <= start:
                parts.append(number)
            position = end if value.leaf.end is None else min(end, value.leaf.end)
            text = value.take(max(position, value.leaf.start), self.original)
            parts.append(text if number is None else "")
            if position != value.leaf.end:
                break
            if number is not None:
                self._quote_at = position
            self._values.popleft()
        else:
            parts.append(self._between(position, end))
        self._sent = max(self._sent, end)
        if self._heads is not None:
            self._heads.take(self._sent)
        self._trim()
        return "".join(parts)

    def _between(self, start: int, end: int) -> str:
        """What stands between values, but for the quote behind one that has become a number."""
        text = self.original(start, end)
        return text[1:] if start == self._quote_at else text

    def _may_be_number(self, value: _Value) -> bool:
        numbers, text = self._numbers, value.head
        if numbers is None or value.leaf.kind != "text" or text != value.tail:
            return False
        return not value.is_whole and numbers.begins_number(text)

    def _number(self, value: _Value) -> str | None:
        numbers, text = self._numbers, value.head
        if numbers is None or value.leaf.kind != "text" or text != value.tail:
            return None
        return numbers.number(text) if value.is_whole else None

    def _scan(self) -> None:
        self._decide(is_over=False)
        if self._scanner is not None:
            self._scanner.feed(self._text[self._fed - self._base :])
            self._fed = self.length
            self._take_leaves()

    def _decide(self, *, is_over: bool) -> None:
        """Find out whether the text is JSON, where that is not known."""
        if self._scanner is not None or self._fed == self.length:
            return
        start = beginning(self._text) if self._base == self._fed == 0 else -1
        if start is None and not is_over:
            return
        is_plain = start is None or start < 0
        if is_plain and self._fed == self._sent == 0:
            self._plain = self._make_plain()
            self._plain.add(self._text)
            if self._is_released:
                self._plain.release()
            self._text, self._heads = "", None  # all screens read the one text
            return
        self._scanner = JsonScanner()
        if is_plain:
            self._scanner.begin_plain(self._fed)
            self._heads = None  # all screens read the one text
        else:
            assert start is not None
            self._scanner.feed(" " * start)
            self._fed = start
        if is_over:
            self._scan()

    def _take_leaves(self) -> None:
        assert self._scanner is not None
        leaves, self._scanner.leaves = self._scanner.leaves, []
        for leaf in leaves:
            value = _Value(leaf, self._buffer(leaf), leaf.start)
            self._values.append(value)
            self._unread.append(value)
        for value in self._unread:
            if value.add(self._text, self._base, self._scanner.position):
                self._note_seam(value)

    def _note_seam(self, value: _Value) -> None:
        """A value is whole."""
        if value.leaf.kind == "text":
            if self._before and value.head:
                self._seams.append((self._before, value.head))
            self._before = value.tail
            if isinstance(value.buffer, ChannelBuffer):
                self._seams += value.buffer.take_seams()

    def _make_plain(self) -> HoldBackBuffer:
        return self._make()

    def _buffer(self, leaf: Leaf) -> HoldBackBuffer | ChannelBuffer:
        prefix = context_of(leaf.key)
        if leaf.kind == "text" and self._nesting < MAX_NESTING:
            return _NestedBuffer(self._make, prefix, self._nesting + 1)
        return self._make(prefix=prefix, is_number=leaf.kind == "number")

    def _trim(self) -> None:
        # not at every character, since the rest is copied
        keep = self._values[0].kept if self._values else self._sent
        if self._scanner is None:
            keep = min(keep, self._fed)
        if keep - self._base > 1024 + len(self._text) // 2:
            self._text = self._text[keep - self._base :]
            self._base = keep


class _NestedBuffer(ChannelBuffer):
    """The text of a value of JSON, which may be JSON in turn; `prefix` is read before one that is
    not."""

    def __init__(self, make: MakeBuffer, prefix: str, nesting: int) -> None:
        super().__init__(make, nesting=nesting)
        self._prefix = prefix

    def _make_plain(self) -> HoldBackBuffer:
        return self._make(prefix=self._prefix)


@dataclass(slots=True, eq=False)
class _Value:
    """A value in a channel: `buffer` has its text as a reader of the JSON gets it.

    `decoded` is the position in the channel up to which its spelling has been decoded. `head` and
    `tail` are the ends of the text.
    """

    leaf: Leaf
    buffer: HoldBackBuffer | ChannelBuffer
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
    def is_free(self) -> bool:
        """Whether all of it may be sent."""
        return self.is_whole and self.buffer.free == self.buffer.length

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
