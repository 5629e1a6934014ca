"""The events of a stream that wait until all their texts may leave, in the order of their groups.

A waiting event is kept as the bytes that came, a tenth of the parsed object; only an event that is
rewritten is parsed again.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from server.screening.answers.app_verdicts import TakenVerdicts
from server.screening.streams.channel import ChannelBuffer
from server.screening.streams.formats.base import Group, Slot, StreamFormat, framed
from server.screening.streams.hold_back import HoldBackBuffer
from server.screening.streams.sse import BrokenStream, data_of
from server.wire.strict_json import parse_answer

MAX_WAITING = 20_000
"""Events in the queue of a stream."""
_SPELLING = {"logprobs", "top_logprobs", "token_ids", "prompt_token_ids", "prompt_logprobs"}
_TOKEN_LISTS = _SPELLING | {"content", "refusal", "tokens", "token_logprobs", "text_offset"}
"""Members of log-probabilities: lists of tokens. All other names may be tokens themselves."""


@dataclass(frozen=True, slots=True)
class SlotText:
    """The text of one slot of an event, by its end in its channel."""

    group: Group
    buffer: HoldBackBuffer | ChannelBuffer
    end: int
    text: str


@dataclass(slots=True)
class WaitingEvent:
    """An event that waits.

    `event` and its `slots` are kept where it does not leave as it came. An event has one group (its
    `groups` may repeat it); one without waits for all before it. `mark`: see `StreamFormat.mark`.
    `signs`: the buffer whose text it signs. `verdicts`: what it gets back when it leaves.
    `number`: its place in the stream.
    """

    raw: bytes
    name: str = ""
    event: dict[str, Any] | None = None
    slots: Sequence[Slot] = ()
    groups: Sequence[Group] = ()
    parts: list[SlotText] = field(default_factory=list)
    mark: Any = None
    signs: HoldBackBuffer | ChannelBuffer | None = None
    verdicts: TakenVerdicts | None = None
    number: int = 0

    @property
    def is_free(self) -> bool:
        """Whether all its text may be sent."""
        if self.signs is not None and self.signs.free < self.signs.length:
            return False
        return all(part.end <= part.buffer.free for part in self.parts)


class EventQueue:
    """`guard_object` makes the `guard` object of the event that carries the verdict; `put_back`
    gives the rows of an event those that the app had for them. At most MAX_WAITING events wait, of
    `most_bytes` in all."""

    def __init__(
        self,
        stream_format: StreamFormat,
        guard_object: Callable[[], Mapping[str, Any] | None],
        put_back: Callable[[TakenVerdicts, dict[str, Any]], None],
        most_bytes: int,
    ) -> None:
        self._format, self._guard_object = stream_format, guard_object
        self._put_back = put_back
        self._count = itertools.count()
        self._size = self._bytes = 0
        self._most_bytes = most_bytes
        self._last: WaitingEvent | None = None
        # those up to the next event that waits for all others, which is the first of the rest
        self._groups: dict[Group, deque[WaitingEvent]] = {}
        self._rest: deque[WaitingEvent] = deque()

    def __bool__(self) -> bool:
        return bool(self._size)

    def put(self, event: WaitingEvent) -> None:
        """Raises BrokenStream where too many wait."""
        event.number = next(self._count)
        self._last = event
        self._size += 1
        self._bytes += len(event.raw)
        if self._rest or not event.groups:
            self._rest.append(event)
        else:
            self._groups.setdefault(event.groups[0], deque()).append(event)
        if self._size > MAX_WAITING:
            raise BrokenStream(f"more than {MAX_WAITING} events wait to be read")
        if self._bytes > self._most_bytes:
            raise BrokenStream(f"more than {self._most_bytes} bytes wait to be read")

    def first_held(self, group: Group) -> WaitingEvent | None:
        """The first event of `group` with text that is not free, of those that wait for none."""
        return next((e for e in self._groups.get(group, ()) if not e.is_free), None)

    def release(self) -> bytes:
        """The bytes of the events that may leave. Looks at one event of each group, not at all."""
        out = bytearray()
        while True:
            free: list[WaitingEvent] = []
            for group in list(self._groups):
                free += self._free_of(group)
            for event in sorted(free, key=lambda event: event.number):
                out += self._leave(event)
            if self._groups or not self._rest or not self._rest[0].is_free:
                return bytes(out)
            out += self._leave(self._rest.popleft())
            self._admit_rest()

    def release_last(self) -> bytes:
        """As `release`, where only the last event is new."""
        event = self._last
        if event is None or not event.groups or self._rest:
            return self.release()
        if self._groups[event.groups[0]][0] is not event:
            return b""
        return b"".join(map(self._leave, self._free_of(event.groups[0])))

    def drop(self, group: Group) -> bytes:
        """Drop the waiting events of `group`; return the free part of the first of them."""
        dropped = [*self._groups.pop(group, ()), *(e for e in self._rest if group in e.groups)]
        if self._rest:
            self._rest = deque(event for event in self._rest if group not in event.groups)
        first = next((event for event in dropped if event.parts), None)
        self._size -= len(dropped)
        self._bytes -= sum(len(event.raw) for event in dropped)
        self._last = None
        return self._free_part(first) if first else b""

    def clear(self) -> None:
        """Drop all events."""
        self._groups, self._rest, self._last = {}, deque(), None
        self._size = self._bytes = 0

    def _free_of(self, group: Group) -> list[WaitingEvent]:
        """Take the events at the head of `group` that are free."""
        events, free = self._groups[group], []
        while events and events[0].is_free:
            free.append(events.popleft())
        if not events:
            del self._groups[group]
        return free

    def _admit_rest(self) -> None:
        while self._rest and self._rest[0].groups:
            event = self._rest.popleft()
            self._groups.setdefault(event.groups[0], deque()).append(event)

    def _leave(self, event: WaitingEvent) -> bytes:
        self._size -= 1
        self._bytes -= len(event.raw)
        if event is self._last:
            self._last = None
        return self._serialize(event)

    def _serialize(self, event: WaitingEvent) -> bytes:
        if event.signs is not None and event.signs.is_cut:
            return b""  # the signature of a text that has not left as it was
        texts = [_take(part, part.end) for part in event.parts]
        if event.mark is not None:
            self._format.on_sent(event.mark, texts)
        if any(text != part.text for part, text in zip(event.parts, texts, strict=True)):
            self._rewrite(event, texts)
        if event.event is None:
            return event.raw
        if event.verdicts is not None:
            self._put_back(event.verdicts, event.event)
        if self._format.carries_verdict(event.event):
            self._format.give_verdict(event.event, self._guard_object())
        return framed(event.event, event.name)

    def _free_part(self, event: WaitingEvent) -> bytes:
        texts = [_take(part, min(part.end, part.buffer.free)) for part in event.parts]
        if not any(texts):
            return b""
        if event.mark is not None:
            self._format.on_sent(event.mark, texts)
        self._rewrite(event, texts)
        assert event.event is not None
        return framed(event.event, event.name)

    def _rewrite(self, event: WaitingEvent, texts: Sequence[str]) -> None:
        if event.event is None:
            event.event, _ = parsed(data_of(event.raw))
            event.slots = self._format.slots(event.event)
        for slot, text in zip(event.slots, texts, strict=True):
            slot.holder[slot.key] = text
        without_tokens(event.event)


def _take(part: SlotText, end: int) -> str:
    return part.buffer.take(end) if end > part.buffer.sent else ""


def without_tokens(value: Any) -> bool:
    """Remove the tokens of rewritten texts, which spell the originals; return whether there were
    any. Lists of them become empty, and what holds no token stays as it is."""
    removed = False
    if isinstance(value, dict):
        for name, item in value.items():
            if name not in _SPELLING:
                removed = without_tokens(item) or removed
            elif (rest := _without_tokens(item)) != item:
                value[name], removed = rest, True
    elif isinstance(value, list):
        for item in value:
            removed = without_tokens(item) or removed
    return removed


def _without_tokens(value: Any) -> Any:
    """What is left of a member that spells a text."""
    if isinstance(value, dict):
        return {name: _without_tokens(item) for name, item in value.items() if name in _TOKEN_LISTS}
    if isinstance(value, list):
        return []
    return None if isinstance(value, str) else value


def parsed(data: str) -> tuple[dict[str, Any], bool]:
    """The JSON object of an event, and whether a name stands twice in it. Raises BrokenStream."""
    try:
        event, has_duplicates = parse_answer(data)
    except ValueError:
        raise BrokenStream("an event is not JSON") from None
    if not isinstance(event, dict):
        raise BrokenStream("an event is not a JSON object")
    return event, has_duplicates
