"""The text of one channel of a stream, held back until it has been read.

Text is read in windows that end at fixed places, every `stride` characters, so that what is seen
does not depend on how a stream is cut into chunks. What has `context` characters behind it that
have been read too is free to leave: a match no longer than that is known whole before its first
character goes.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Span:
    """Characters `[start, end)` in whose place another text leaves, made of what they are."""

    start: int
    end: int
    label: str


Replace = Callable[[Span, str], str]
"""What leaves in the place of a span, from it and its characters; asked once a span, in order."""


@dataclass(frozen=True, slots=True)
class Window:
    """Text from the character `start` of a channel on, to be read."""

    start: int
    text: str

    @property
    def end(self) -> int:
        return self.start + len(self.text)


class HoldBackBuffer:
    """`hold_back` characters are held at most; windows reach `lookback` behind them. All places are
    counted in characters from the beginning."""

    def __init__(self, hold_back: int, lookback: int, replace: Replace) -> None:
        self.stride = max(1, hold_back // 4)
        self.context = hold_back - self.stride
        self.lookback = lookback
        self._replace = replace
        self._base = 0
        self._text = ""
        self._read = 0
        self._left = 0
        self._over = False
        self._kept = 0
        self._spans: list[Span] = []

    @property
    def length(self) -> int:
        """Characters that have come."""
        return self._base + len(self._text)

    @property
    def left(self) -> int:
        """Characters that have left."""
        return self._left

    @property
    def free(self) -> int:
        """The place up to which text may leave."""
        if self._over and self._read == self.length:
            return max(self._left, self.length - self._kept)
        return max(self._left, self._read - self.context)

    def add(self, text: str) -> None:
        """More of it has come."""
        self._text += text

    def due(self, *, all: bool = False) -> Iterator[Window]:
        """The windows that are to be read now, in order; with `all` also what is too short for
        one. Each is to be told to `seen` before the next is asked for."""
        while (end := (self._read // self.stride + 1) * self.stride) <= self.length:
            yield self._window(end)
        if all and self._read < self.length:
            yield self._window(self.length)

    def seen(self, window: Window, spans: Sequence[Span]) -> None:
        """A window has been read; `spans` are those that were found in it, counted from its own
        start, not overlapping, in order. They take the place of what was found of text that was
        not free."""
        free = max(self._left, self._read - self.context)
        kept = [span for span in self._spans if span.start < free]
        locked = kept[-1].end if kept else 0
        for span in spans:
            start, end = window.start + span.start, window.start + span.end
            # its beginning was free, or stands in another's place: the rest of it need not
            start = max(start, free, locked)
            if start < end:
                kept.append(Span(start, end, span.label))
                locked = end
        self._spans = kept
        self._read = max(self._read, window.end)

    def let_go(self, keep: int = 0) -> None:
        """What has been read may leave, though what comes may be of one piece with it; all but the
        last `keep` characters."""
        self._over, self._kept = True, keep

    def ending(self, count: int) -> str:
        """The last characters that have come, of those that are still here."""
        return self._text[-count:] if count else ""

    def hold(self) -> None:
        """Undo `let_go`: more has come."""
        self._over = False

    def take(self, end: int) -> str:
        """What leaves for the characters up to `end`, which must be free."""
        if end > self.free:
            raise ValueError(f"{end} is not free: only {self.free} is")
        out, at = [], self._left
        first = bisect_left(self._spans, at, key=lambda span: span.end)
        for span in self._spans[first:]:
            if span.start >= end:
                break
            if span.start >= at:
                out.append(self._slice(at, span.start))
                out.append(self._replace(span, self._slice(span.start, span.end)))
            at = max(at, min(span.end, end))
        out.append(self._slice(at, end))
        self._left = max(self._left, end)
        self._trim()
        return "".join(out)

    def _window(self, end: int) -> Window:
        start = max(self._base, end - self.stride - self.context - self.lookback)
        return Window(start, self._slice(start, end))

    def _slice(self, start: int, end: int) -> str:
        return self._text[start - self._base : end - self._base]

    def _trim(self) -> None:
        # not at every character: what is cut is copied
        extra = self._left - self.lookback - self._base
        if extra > self.lookback + 4 * self.stride:
            self._text = self._text[extra:]
            self._base += extra
            self._spans = [span for span in self._spans if span.end > self._left]
