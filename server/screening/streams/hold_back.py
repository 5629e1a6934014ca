"""A buffer that holds the text of one channel of a stream back until it has been read.

Text is read in windows that end at fixed positions, every `stride` characters, so that the findings
do not depend on how a stream is cut into chunks. A character may be sent once the `context`
characters after it have been read too: a match no longer than that is known as a whole before its
first character leaves.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Span:
    """Characters `[start, end)` to be replaced by a text that depends on them and on `label`."""

    start: int
    end: int
    label: str


Replace = Callable[[Span, str], str]
"""The replacement of a span that holds a text; called once per span, in order."""


@dataclass(frozen=True, slots=True)
class Window:
    """Text to be read, from the character `start` of a channel."""

    start: int
    text: str

    @property
    def end(self) -> int:
        return self.start + len(self.text)


class HoldBackBuffer:
    """Holds at most `hold_back` characters; windows reach `lookback` characters before them.

    All positions are counted in characters from the start of the channel.
    """

    def __init__(self, hold_back: int, lookback: int, replace: Replace) -> None:
        self.stride = max(1, hold_back // 4)
        self.context = hold_back - self.stride
        self.lookback = lookback
        self._replace = replace
        self._base = 0
        self._text = ""
        self._read = 0
        self._sent = 0
        self._is_released = False
        self._kept = 0
        self._spans: list[Span] = []

    @property
    def length(self) -> int:
        """Characters that have come."""
        return self._base + len(self._text)

    @property
    def sent(self) -> int:
        """Characters that have been sent."""
        return self._sent

    @property
    def free(self) -> int:
        """The position up to which text may be sent."""
        if self._is_released and self._read == self.length:
            return max(self._sent, self.length - self._kept)
        return max(self._sent, self._read - self.context)

    def add(self, text: str) -> None:
        """Append text that has come."""
        self._text += text

    def due_windows(self, *, all: bool = False) -> Iterator[Window]:
        """The windows to be read now, in order; with `all` also one shorter than a stride.

        Give every window to `mark_read` before asking for the next.
        """
        while (end := (self._read // self.stride + 1) * self.stride) <= self.length:
            yield self._window(end)
        if all and self._read < self.length:
            yield self._window(self.length)

    def mark_read(self, window: Window, spans: Sequence[Span]) -> None:
        """A window has been read, with `spans` to be replaced.

        They are counted from the start of the window, in order, and do not overlap. They replace
        earlier spans in text that was not free.
        """
        free = max(self._sent, self._read - self.context)
        kept = [span for span in self._spans if span.start < free]
        locked = kept[-1].end if kept else 0
        for span in spans:
            start, end = window.start + span.start, window.start + span.end
            # where its beginning was free, or is in another span, the rest need not be
            start = max(start, free, locked)
            if start < end:
                kept.append(Span(start, end, span.label))
                locked = end
        self._spans = kept
        self._read = max(self._read, window.end)

    def release(self, keep: int = 0) -> None:
        """Let all text that has been read be sent, though a match may go on after it; the last
        `keep` characters stay."""
        self._is_released, self._kept = True, keep

    def tail(self, count: int) -> str:
        """The last `count` characters that have come, as far as they are still here."""
        return self._text[-count:] if count else ""

    def hold(self) -> None:
        """Undo `release`: more text comes."""
        self._is_released = False

    def take(self, end: int) -> str:
        """The text to be sent for the characters up to `end`, which must be free."""
        if end > self.free:
            raise ValueError(f"the characters up to {end} are not free: only {self.free} are")
        parts, position = [], self._sent
        first = bisect_left(self._spans, position, key=lambda span: span.end)
        for span in self._spans[first:]:
            if span.start >= end:
                break
            if span.start >= position:
                parts.append(self._slice(position, span.start))
                parts.append(self._replace(span, self._slice(span.start, span.end)))
            position = max(position, min(span.end, end))
        parts.append(self._slice(position, end))
        self._sent = max(self._sent, end)
        self._trim()
        return "".join(parts)

    def _window(self, end: int) -> Window:
        start = max(self._base, end - self.stride - self.context - self.lookback)
        return Window(start, self._slice(start, end))

    def _slice(self, start: int, end: int) -> str:
        return self._text[start - self._base : end - self._base]

    def _trim(self) -> None:
        # not at every character, since the rest is copied
        extra = self._sent - self.lookback - self._base
        if extra > self.lookback + 4 * self.stride:
            self._text = self._text[extra:]
            self._base += extra
            self._spans = [span for span in self._spans if span.end > self._sent]
