"""A buffer for a channel whose text may be JSON: its values are held back and read one by one.

What stands between values leaves at once, and a value that stays as it is keeps its spelling.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from typing import Protocol

from server.screening.bodies.documents import MAX_BLOCKS
from server.screening.bodies.scanner import JsonScanner, Leaf, beginning, require_few_levels
from server.screening.bodies.texts import context_of
from server.screening.streams.hold_back import HoldBackBuffer, Window
from server.screening.streams.json_values import JsonValue
from server.screening.streams.plain_text import PlainText


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
    `leaves_whole`: no text is free before all of it has come.
    `nesting`: the texts of JSON that this one stands in. Raises NestedTooDeeply.
    """

    def __init__(
        self,
        make: MakeBuffer,
        *,
        numbers: Numbers | None = None,
        heads: bool = False,
        nesting: int = 0,
        blocks: int = 0,
        leaves_whole: bool = False,
    ) -> None:
        self._waits = leaves_whole
        self._has_heads, self._blocks = heads, blocks
        self._make, self._nesting, self._numbers = make, nesting, numbers
        self._quote_at = -1
        self._heads = make() if heads else None
        self._text, self._base, self._sent = "", 0, 0
        self._scanner: JsonScanner | None = None
        self._fed = 0
        self._values: deque[JsonValue] = deque()
        self._unread: deque[JsonValue] = deque()
        # all of the text, where it is no JSON, as most texts are
        self._plain: HoldBackBuffer | PlainText | None = None
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
        settled = self._settled
        return self.sent if self._waits else settled

    @property
    def _settled(self) -> int:
        """The position up to which what has been found stays as it is."""
        if self._plain is not None:
            return self._plain.free
        # each value is asked once, since it asks those in it
        while self._unread and (free := self._unread[0].free) == self._unread[0].end:
            self._unread.popleft()
        if self._unread:
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
        self._waits = False
        if self._plain is None:
            self._decide(is_over=True)
        if self._plain is not None:
            self._plain.finish()
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
        return seams + (self._plain.take_seams() if isinstance(self._plain, PlainText) else [])

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

    def _may_be_number(self, value: JsonValue) -> bool:
        numbers, text = self._numbers, value.short_text
        if numbers is None or text is None or value.is_whole:
            return False
        return numbers.begins_number(text)

    def _number(self, value: JsonValue) -> str | None:
        numbers, text = self._numbers, value.short_text
        if numbers is None or text is None or not value.is_whole:
            return None
        return numbers.number(text)

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
            require_few_levels(self._nesting)
            self._scanner.feed(" " * start)
            self._fed = start
        if is_over:
            self._scan()

    def _take_leaves(self) -> None:
        assert self._scanner is not None
        leaves, self._scanner.leaves = self._scanner.leaves, []
        for leaf in leaves:
            value = JsonValue(leaf, self._buffer(leaf), leaf.start)
            self._values.append(value)
            self._unread.append(value)
        for value in self._unread:
            if value.add(self._text, self._base, self._scanner.position):
                self._note_seam(value)

    def _note_seam(self, value: JsonValue) -> None:
        """A value is whole."""
        if value.leaf.kind == "text":
            if self._before and value.head:
                self._seams.append((self._before, value.head))
            self._before = value.tail
            if isinstance(value.buffer, ChannelBuffer):
                self._seams += value.buffer.take_seams()

    def _make_plain(self, prefix: str = "") -> HoldBackBuffer | PlainText:
        if self._blocks >= MAX_BLOCKS:
            return self._make(prefix=prefix)
        return PlainText(self._make(prefix=prefix), self._make_block)

    def _make_block(self) -> ChannelBuffer:
        return ChannelBuffer(
            self._make,
            numbers=self._numbers,
            heads=self._has_heads,
            nesting=self._nesting,
            blocks=self._blocks + 1,
        )

    def _buffer(self, leaf: Leaf) -> Buffer | PlainText:
        if leaf.kind == "plain":
            return self._make_plain()
        prefix = context_of(leaf.key)
        if leaf.kind == "text":
            return _NestedBuffer(self._make, prefix, self._numbers, self._nesting + 1)
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

    def __init__(
        self, make: MakeBuffer, prefix: str, numbers: Numbers | None, nesting: int
    ) -> None:
        super().__init__(make, numbers=numbers, nesting=nesting)
        self._prefix = prefix

    def _make_plain(self, prefix: str = "") -> HoldBackBuffer | PlainText:
        return super()._make_plain(prefix or self._prefix)


Buffer = HoldBackBuffer | ChannelBuffer
