"""The events of a stream that wait until all their texts may leave, in the order of their groups.

A waiting event is kept as the bytes that came, a tenth of the parsed object; only an event that is
rewritten is parsed again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from server.screening.streams.channel import ChannelBuffer
from server.screening.streams.formats.base import Group, Slot, StreamFormat, framed
from server.screening.streams.hold_back import HoldBackBuffer
from server.screening.streams.sse import BrokenStream, data_of

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

    `event` and its `slots` are kept where it does not leave as it came. An event without `groups`
    waits for all before it. `mark`: see `StreamFormat.mark`. `signs`: the buffer whose text it
    signs.
    """

    raw: bytes
    name: str = ""
    event: dict[str, Any] | None = None
    slots: Sequence[Slot] = ()
    groups: Sequence[Group] = ()
    parts: list[SlotText] = field(default_factory=list)
    mark: Any = None
    signs: HoldBackBuffer | ChannelBuffer | None = None


class EventQueue:
    """`guard_object` makes the `guard` object of the event that carries the verdict."""

    def __init__(
        self,
        stream_format: StreamFormat,
        guard_object: Callable[[], Mapping[str, Any] | None],
    ) -> None:
        self._format, self._guard_object = stream_format, guard_object
        self._events: list[WaitingEvent] = []
        self._waiting_groups: set[Group] = set()
        self._has_barrier = False

    def __bool__(self) -> bool:
        return bool(self._events)

    def __iter__(self) -> Iterator[WaitingEvent]:
        return iter(self._events)

    def put(self, event: WaitingEvent) -> None:
        """Raises BrokenStream where too many wait."""
        self._events.append(event)
        if len(self._events) > MAX_WAITING:
            raise BrokenStream(f"more than {MAX_WAITING} events come without text")

    def ends_with(self, event: WaitingEvent) -> bool:
        """Whether `event` is the last one that waits."""
        return bool(self._events) and self._events[-1] is event

    def release(self) -> bytes:
        """The bytes of the events that may leave."""
        out = bytearray()
        kept: list[WaitingEvent] = []
        self._waiting_groups, self._has_barrier = set(), False
        for event in self._events:
            if self._may_leave(event, is_behind=bool(kept)):
                out += self._serialize(event)
            else:
                kept.append(event)
                self._note_waiting(event)
        self._events = kept
        return bytes(out)

    def release_last(self) -> bytes:
        """As `release`, where only the last event is new."""
        event = self._events.pop()
        if self._may_leave(event, is_behind=bool(self._events)):
            return self._serialize(event)
        self._events.append(event)
        self._note_waiting(event)
        return b""

    def drop(self, group: Group) -> bytes:
        """Drop the waiting events of `group`; return the free part of the first of them."""
        out = b""
        for event in self._events:
            if group in event.groups and event.parts:
                out = self._free_part(event)
                break
        self._events = [event for event in self._events if group not in event.groups]
        return out

    def clear(self) -> None:
        """Drop all events."""
        self._events = []

    def _note_waiting(self, event: WaitingEvent) -> None:
        self._waiting_groups.update(event.groups)
        self._has_barrier = self._has_barrier or not event.groups

    def _may_leave(self, event: WaitingEvent, *, is_behind: bool) -> bool:
        groups = event.groups
        is_first = not self._waiting_groups.intersection(groups) if groups else not is_behind
        is_free = all(part.end <= part.buffer.free for part in event.parts)
        if event.signs is not None:
            is_free = is_free and event.signs.free == event.signs.length
        return is_first and is_free and not self._has_barrier

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
            event.event = parsed(data_of(event.raw))
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


def parsed(data: str) -> dict[str, Any]:
    """The JSON object of an event. Raises BrokenStream."""
    try:
        event = json.loads(data)
    except (ValueError, RecursionError):
        raise BrokenStream("an event is not JSON") from None
    if not isinstance(event, dict):
        raise BrokenStream("an event is not a JSON object")
    return event
