"""Server-sent events as they come in: cut out of chunks, bounded, their bytes kept."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_END = re.compile(rb"\r\n\r\n|\n\n|\r\r|\n\r\n|\r\n\n")

_NAME = re.compile(r"[\w.:-]{0,80}", re.ASCII)
_BOM = b"\xef\xbb\xbf"

DONE = "[DONE]"


class BrokenStream(ValueError):
    """What came is no stream of events that can be read."""


@dataclass(frozen=True, slots=True)
class SentEvent:
    """One event: its bytes with the blank line that ends it, its `event` name and its data.

    What else stands in an event (an id, a comment, a line of no kind) is not in its bytes: nobody
    reads it.
    """

    raw: bytes
    name: str
    data: str | None
    """None for a comment, which is only there to keep a connection open."""


class EventReader:
    """Takes chunks, gives whole events; an event may be `limit` bytes long."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._held = bytearray()
        self._looked = 0
        self._begun = False

    def feed(self, chunk: bytes) -> Iterator[SentEvent]:
        """The events that are whole with this chunk. Raises BrokenStream."""
        self._held += chunk
        if not self._begun and len(self._held) >= len(_BOM):
            self._begun = True
            if self._held.startswith(_BOM):
                del self._held[: len(_BOM)]
        while end := _END.search(self._held, self._looked):
            raw = bytes(self._held[: end.end()])
            del self._held[: end.end()]
            self._looked = 0
            if event := _read(raw):
                yield event
        # what ends an event may be half here
        self._looked = max(0, len(self._held) - 3)
        if len(self._held) > self.limit:
            raise BrokenStream(f"an event is longer than {self.limit} bytes")

    def rest(self) -> Iterator[SentEvent]:
        """What is left when the stream has ended: an event that nobody closed."""
        raw, self._held = bytes(self._held), bytearray()
        if raw.strip() and (event := _read(raw + b"\n\n")):
            yield event


def data_of(raw: bytes) -> str:
    """The data of an event by its bytes, which are whole."""
    event = _read(raw)
    assert event is not None and event.data is not None
    return event.data


def _read(raw: bytes) -> SentEvent | None:
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise BrokenStream("an event is not UTF-8") from error
    name, data, plain = "", [], True
    for line in re.split("\r\n|\n|\r", text):
        field, colon, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "data" and colon:
            data.append(value)
        elif field == "event" and _NAME.fullmatch(value):
            name = value
        elif line:
            plain = False
    if not text.strip("\r\n"):
        return None
    if data and not plain:
        lines = [f"event: {name}", *(f"data: {each}" for each in data)]
        raw = "\n".join([*lines[not name :], "", ""]).encode()
    return SentEvent(raw, name, "\n".join(data) if data else None)
