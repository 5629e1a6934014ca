"""A buffer for text that is no JSON, but for blocks of code that hold some."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from server.screening.bodies.scanner import block_of_json, may_begin_block
from server.screening.streams.hold_back import HoldBackBuffer, TextBuffer, Window


class JsonBuffer(TextBuffer, Protocol):
    """What holds a block of JSON back: see ChannelBuffer."""

    def take_seams(self) -> list[tuple[str, str]]: ...


class PlainText:
    """As a HoldBackBuffer of the whole text. What follows the beginning of a block of code with
    JSON is held back by a buffer of `make_json`, all before it by `first`."""

    def __init__(self, first: HoldBackBuffer, make_json: Callable[[], JsonBuffer]) -> None:
        self.first = first
        self.json: JsonBuffer | None = None
        self._make_json = make_json
        # what may begin such a block; it is in no buffer
        self._begun = ""

    @property
    def length(self) -> int:
        """Characters that have come."""
        rest = len(self._begun) if self.json is None else self.json.length
        return self.first.length + rest

    @property
    def sent(self) -> int:
        """Characters that have been sent."""
        return self.first.sent + (0 if self.json is None else self.json.sent)

    @property
    def free(self) -> int:
        """The position up to which text may be sent."""
        free = self.first.free
        if self.json is not None and free == self.first.length:
            free += self.json.free
        return free

    def add(self, text: str) -> None:
        """Append text that has come."""
        if self.json is not None:
            self.json.add(text)
            return
        if "`" not in text and not self._begun:
            self.first.add(text)
            return
        text, self._begun = self._begun + text, ""
        if (start := block_of_json(text)) is not None:
            self.first.add(text[:start])
            self.first.finish()
            self.first.release()
            self.json = self._make_json()
            self.json.add(text[start:])
            return
        begun = may_begin_block(text)
        self.first.add(text[:begun])
        self._begun = text[begun:]

    def finish(self) -> None:
        """No more text comes."""
        self._settle()
        (self.first if self.json is None else self.json).finish()

    def due_windows(self, *, all: bool = False) -> Iterator[Window]:
        """The windows to be read now, in order; with `all` also one shorter than a stride."""
        if all:
            self._settle()
        yield from self.first.due_windows(all=all or self.json is not None)
        if self.json is not None:
            yield from self.json.due_windows(all=all)

    def release(self, keep: int = 0) -> None:
        """Let all text that has been read be sent; the last `keep` characters stay."""
        (self.first if self.json is None else self.json).release(keep)

    def hold(self) -> None:
        """Undo `release`: more text comes."""
        (self.first if self.json is None else self.json).hold()

    def tail(self, count: int) -> str:
        """The last characters that have come of a value that is not whole."""
        return (self.first if self.json is None else self.json).tail(count)

    def original(self, start: int, end: int) -> str:
        """The text as it came, from the first character that has not been sent at the earliest."""
        border = self.first.length
        text = self.first.original(start, min(end, border)) if start < border else ""
        if self.json is not None and end > border:
            text += self.json.original(max(0, start - border), end - border)
        return text

    def take(self, end: int) -> str:
        """The text to be sent for the characters up to `end`, which must be free."""
        border = self.first.length
        text = self.first.take(min(end, border)) if self.first.sent < border else ""
        if self.json is not None and end > border:
            text += self.json.take(end - border)
        return text

    def take_seams(self) -> list[tuple[str, str]]:
        """See ChannelBuffer."""
        return [] if self.json is None else self.json.take_seams()

    def _settle(self) -> None:
        """What may have begun a block begins none, as far as is known."""
        if self._begun:
            self.first.add(self._begun)
            self._begun = ""
