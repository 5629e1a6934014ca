"""Server-sent events, cut out of the chunks of a stream: bounded in size, with their bytes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_END = re.compile(rb"\r\n\r\n|\n\n|\r\r|\n\r\n|\r\n\n")

_NAME = re.compile(r"[\w.:-]{0,80}", re.ASCII)
_BOM = b"\xef\xbb\xbf"

DONE = "[DONE]"


class BrokenStream(ValueError):
    """The stream cannot be read as events."""


@dataclass(frozen=True, slots=True)
class SentEvent:
    """One event: its bytes with the blank line that ends it, its `event` name and its data.

    Its bytes leave out other lines (an id, a comment, an unknown field), which are not screened.
    """

    raw: bytes
    name: str
    data: str | None
    """None for a comment, which only keeps a connection open."""


class EventReader:
    """Takes chunks, gives whole events of at most `limit` bytes."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._buffer = bytearray()
        self._searched = 0
        self._is_started = False

    def feed(self, chunk: bytes) -> Iterator[SentEvent]:
        """The events that this chunk completes. Raises BrokenStream."""
        self._buffer += chunk
        if not self._is_started and len(self._buffer) >= len(_BOM):
            self._is_started = True
            if self._buffer.startswith(_BOM):
                del self._buffer[: len(_BOM)]
        while end := _END.search(self._buffer, self._searched):
            raw = bytes(self._buffer[: end.end()])
            del self._buffer[: end.end()]
            self._searched = 0
            if event := _parse(raw):
                yield event
        # the end of an event may be half here
        self._searched = max(0, len(self._buffer) - 3)
        if len(self._buffer) > self.limit:
            raise BrokenStream(f"an event is longer than {self.limit} bytes")

    def rest(self) -> Iterator[SentEvent]:
        """The event that the end of the stream leaves without a blank line, if there is one."""
        raw, self._buffer = bytes(self._buffer), bytearray()
        if raw.strip() and (event := _parse(raw + b"\n\n")):
            yield event


def data_of(raw: bytes) -> str:
    """The data of a whole event, by its bytes."""
    event = _parse(raw)
    assert event is not None and event.data is not None
    return event.data


def _parse(raw: bytes) -> SentEvent | None:
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise BrokenStream("an event is not UTF-8") from error
    name, data, is_plain = "", [], True
    for line in re.split("\r\n|\n|\r", text):
        field, colon, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "data" and colon:
            data.append(value)
        elif field == "event" and _NAME.fullmatch(value):
            name = value
        elif line:
            if line[0] in "{[<":
                # JSON or HTML, that is announced as events: clients would see nothing of it
                raise BrokenStream("it is announced as events, and is none")
            is_plain = False
    if not text.strip("\r\n"):
        return None
    if data and not is_plain:
        lines = [f"event: {name}", *(f"data: {part}" for part in data)]
        raw = "\n".join([*lines[not name :], "", ""]).encode()
    return SentEvent(raw, name, "\n".join(data) if data else None)
