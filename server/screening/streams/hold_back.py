"""A buffer that holds the text of one channel of a stream back until it has been read.

For classifiers, text is read in windows that end at fixed positions, every `stride` characters, so
that the findings do not depend on how a stream is cut into chunks. A character may be sent once the
`context` characters after it have been read too: a match no longer than that is known as a whole
before its first character leaves. For patterns alone, which tell what may still become a match, a
text is read as it comes, and all leaves but its open end.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from server.screening.bodies.scanner import plain_number
from server.screening.spans import Span
from server.screening.streams.open_end import OpenText

_SHORT: Final = 256
"""Characters up to which a window may grow at its end."""
Replace = Callable[[Span, str], str]
"""The replacement of a span that holds a text; called once per span, in order."""


@dataclass(frozen=True, slots=True)
class Window:
    """Text to be read, from the character `start` of `buffer`, and what stands before it there."""

    buffer: HoldBackBuffer
    start: int
    text: str
    prefix: str = ""
    screens: Literal["all", "lists", "heads"] = "all"
    """Those that read it: pattern lists, the heads of classifiers, or both."""

    @property
    def end(self) -> int:
        return self.start + len(self.text)

    @property
    def reading(self) -> str:
        """The text as it is read."""
        return self.prefix + self.text

    def mark_read(self, spans: Sequence[Span]) -> None:
        """The window has been read; `spans` are counted from the start of `reading`."""
        skipped = len(self.prefix)
        self.buffer.mark_read(
            self,
            [
                Span(max(0, span.start - skipped), span.end - skipped, span.label)
                for span in spans
                if span.end > skipped
            ]
            if skipped
            else spans,
        )


class TextBuffer(Protocol):
    """What holds a text back: see HoldBackBuffer."""

    @property
    def length(self) -> int: ...

    @property
    def sent(self) -> int: ...

    @property
    def free(self) -> int: ...

    def add(self, text: str) -> None: ...

    def finish(self) -> None: ...

    def due_windows(self, *, all: bool = False) -> Iterator[Window]: ...

    def release(self, keep: int = 0) -> None: ...

    def hold(self) -> None: ...

    def tail(self, count: int) -> str: ...

    def original(self, start: int, end: int) -> str: ...

    def take(self, end: int) -> str: ...


class HoldBackBuffer:
    """Holds at most `hold_back` characters; windows reach `lookback` characters before them.

    `open_text` tells the open end of the text; where it is None, windows are read. `prefix` is read
    before the text. `atomic`: the text is a number, of which a span replaces all.
    `sealed`: the text cannot be altered, so that it ends where a span begins. All positions are
    counted in characters from the start of the channel.
    """

    def __init__(
        self,
        hold_back: int,
        lookback: int,
        replace: Replace,
        *,
        open_text: OpenText | None = None,
        prefix: str = "",
        atomic: bool = False,
        sealed: bool = False,
    ) -> None:
        self.stride = max(1, hold_back // 4)
        self.context = hold_back - self.stride
        self.lookback = lookback
        self._replace = replace
        self._open_text, self._seen, self._settled = open_text, 0, 0
        self._reads_from = 0
        self._prefix, self._is_atomic, self.is_sealed = prefix, atomic, sealed
        self._ends_at: int | None = None
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
        return self._unread_from

    @property
    def _unread_from(self) -> int:
        """The position before which what has been found stays as it is."""
        settled = self._read - self.context if self._open_text is None else self._settled
        return max(self._sent, settled)

    @property
    def is_cut(self) -> bool:
        """Whether a sealed text ends before its end."""
        return self._ends_at is not None

    def finish(self) -> None:
        """No more text comes."""

    def original(self, start: int, end: int) -> str:
        """The text as it came, from the first character that has not been sent at the earliest."""
        return self._slice(start, end)

    def add(self, text: str) -> None:
        """Append text that has come."""
        self._text += text

    def due_windows(self, *, all: bool = False) -> Iterator[Window]:
        """The windows to be read now, in order; with `all` also one shorter than a stride.

        Give every window to `mark_read` before asking for the next.
        """
        if self._open_text is not None:
            if self._seen < self.length:
                self._seen = self.length
                skipped = len(self._prefix) if self._base == 0 else 0
                text = self._prefix + self._text if skipped else self._text
                all = self._open_text.update(text, self._base - skipped) > self._settled or all
        elif not self._is_atomic:
            while self._next_end <= self.length:
                yield self._window(self._next_end)
        if all and self._read < self.length:
            yield self._window(self.length)

    def mark_read(self, window: Window, spans: Sequence[Span]) -> None:
        """A window has been read, with `spans` to be replaced.

        They are counted from the start of the window, in order, and do not overlap. They replace
        earlier spans in text that was not free.
        """
        if self._is_atomic:
            spans = [Span(0, self.length, span.label) for span in spans[:1]]
        if self.is_sealed:
            starts = [window.start + span.start for span in spans]
            starts += [] if self._ends_at is None else [self._ends_at]
            self._ends_at, spans = min(starts, default=None), ()
        free = self._unread_from
        kept = [span for span in self._spans if span.start < free]
        locked = kept[-1].end if kept else 0
        for span in spans:
            start, end = window.start + span.start, window.start + span.end
            if self._open_text is not None and start < free and not self._open_text.is_cut:
                continue  # a part of one that is known
            # where its beginning was free, or is in another span, the rest need not be
            start = max(start, free, locked)
            if start < end:
                kept.append(Span(start, end, span.label))
                locked = end
        self._spans = kept
        self._read = self.length if self._is_atomic else max(self._read, window.end)
        if self._open_text is not None:
            self._settled = self._open_text.start

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
        text = "".join(parts)
        if self._ends_at is not None:
            text = text[: max(0, self._ends_at - self._sent)]
        self._sent = max(self._sent, end)
        self._trim()
        return text

    @property
    def _next_end(self) -> int:
        return (self._read // self.stride + 1) * self.stride

    def _window(self, end: int) -> Window:
        if self._open_text is not None:
            # whatever is found from an earlier place on is found from there too
            if end - self._reads_from > _SHORT:
                place = self._open_text.context(self._text, max(0, self._settled - self._base))
                self._reads_from = self._base + place
            start = max(self._base, self._reads_from)
        else:
            reach = end if self._is_atomic else self.stride + self.context + self.lookback
            start = max(self._base, end - reach)
        prefix = self._prefix if start == 0 else ""
        text = self._slice(start, end)
        return Window(self, start, plain_number(text) if self._is_atomic else text, prefix)

    def _slice(self, start: int, end: int) -> str:
        return self._text[start - self._base : end - self._base]

    def _trim(self) -> None:
        # not at every character, since the rest is copied
        extra = self._sent - self.lookback - self._base
        if extra > self.lookback + 4 * self.stride:
            self._text = self._text[extra:]
            self._base += extra
            self._spans = [span for span in self._spans if span.end > self._sent]
