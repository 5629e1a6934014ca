"""The events of a stream that wait until all their texts may leave, in the order of their groups.

What waits is kept as the bytes that came, a tenth of what it is parsed; only an event that is
written over is parsed again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from server.screening.streams.formats.base import Group, Slot, StreamFormat, framed
from server.screening.streams.hold_back import HoldBackBuffer
from server.screening.streams.sse import BrokenStream, data_of

MOST_HELD = 20_000
"""Events in the queue of a stream."""
_SPELLING = {"logprobs", "top_logprobs", "token_ids", "prompt_token_ids", "prompt_logprobs"}


@dataclass(frozen=True, slots=True)
class SlotText:
    """The text of one slot of an event, by its end in its channel."""

    group: Group
    channel: HoldBackBuffer
    end: int
    text: str


@dataclass(slots=True)
class WaitingEvent:
    """An event that waits. `event` and its `slots` are kept where it does not leave as it came.
    `groups` empty: it waits for all before it. `reach`: the characters that its group had behind
    it. `mark`: what the format is to be told of it once it leaves, None for nothing."""

    raw: bytes
    name: str = ""
    event: dict[str, Any] | None = None
    slots: Sequence[Slot] = ()
    groups: Sequence[Group] = ()
    parts: list[SlotText] = field(default_factory=list)
    reach: int = 0
    mark: Any = None


class EventQueue:
    """`verdict` makes the `guard` object of the event that carries it."""

    def __init__(
        self, form: StreamFormat, verdict: Callable[[dict[str, Any] | None], Mapping[str, Any]]
    ) -> None:
        self._form, self._verdict = form, verdict
        self._items: list[WaitingEvent] = []
        self._waiting: set[Group] = set()
        self._barrier = False

    def __bool__(self) -> bool:
        return bool(self._items)

    def __iter__(self) -> Iterator[WaitingEvent]:
        return iter(self._items)

    def put(self, item: WaitingEvent) -> None:
        """Raises BrokenStream where too many wait."""
        self._items.append(item)
        if len(self._items) > MOST_HELD:
            raise BrokenStream(f"more than {MOST_HELD} events come without text")

    def ends_with(self, item: WaitingEvent) -> bool:
        """Whether `item` is the last one that waits."""
        return bool(self._items) and self._items[-1] is item

    def release(self) -> bytes:
        """The events that may leave."""
        out = bytearray()
        kept: list[WaitingEvent] = []
        self._waiting, self._barrier = set(), False
        for item in self._items:
            if self._may_leave(item, behind=bool(kept)):
                out += self._leaving(item)
            else:
                kept.append(item)
                self._waits(item)
        self._items = kept
        return bytes(out)

    def release_last(self) -> bytes:
        """As `release`, where nothing but the last event is new."""
        item = self._items.pop()
        if self._may_leave(item, behind=bool(self._items)):
            return self._leaving(item)
        self._items.append(item)
        self._waits(item)
        return b""

    def drop(self, group: Group) -> bytes:
        """Drop what waits of `group`; what is free of its first event that is not so as a whole."""
        out = b""
        for item in self._items:
            if group in item.groups and item.parts:
                out = self._free_part(item)
                break
        self._items = [item for item in self._items if group not in item.groups]
        return out

    def clear(self) -> None:
        """Drop all that waits."""
        self._items = []

    def _waits(self, item: WaitingEvent) -> None:
        self._waiting.update(item.groups)
        self._barrier = self._barrier or not item.groups

    def _may_leave(self, item: WaitingEvent, *, behind: bool) -> bool:
        first = not self._waiting.intersection(item.groups) if item.groups else not behind
        free = all(part.end <= part.channel.free for part in item.parts)
        return first and free and not self._barrier

    def _leaving(self, item: WaitingEvent) -> bytes:
        if item.mark is not None:
            self._form.sent(item.mark)
        texts = [_taken(part, part.end) for part in item.parts]
        if any(text != part.text for part, text in zip(item.parts, texts, strict=True)):
            self._write(item, texts)
        if item.event is None:
            return item.raw
        if self._form.carries_verdict(item.event):
            item.event["guard"] = self._verdict(item.event.get("guard"))
        return framed(item.event, item.name)

    def _free_part(self, item: WaitingEvent) -> bytes:
        texts = [_taken(part, min(part.end, part.channel.free)) for part in item.parts]
        if not any(texts):
            return b""
        self._write(item, texts)
        assert item.event is not None
        return framed(item.event, item.name)

    def _write(self, item: WaitingEvent, texts: Sequence[str]) -> None:
        if item.event is None:
            item.event = parsed(data_of(item.raw))
            item.slots = self._form.slots(item.event)
        for slot, text in zip(item.slots, texts, strict=True):
            slot.holder[slot.key] = text
        without_tokens(item.event)


def _taken(part: SlotText, end: int) -> str:
    return part.channel.take(end) if end > part.channel.left else ""


def without_tokens(value: Any) -> bool:
    """Take out the tokens of texts that were written over, which spell them; whether there were."""
    taken = False
    if isinstance(value, dict):
        for name, item in value.items():
            if name in _SPELLING and item is not None:
                value[name], taken = None, True
            else:
                taken = without_tokens(item) or taken
    elif isinstance(value, list):
        for item in value:
            taken = without_tokens(item) or taken
    return taken


def parsed(data: str) -> dict[str, Any]:
    """An event's JSON. Raises BrokenStream."""
    try:
        event = json.loads(data)
    except (ValueError, RecursionError):
        raise BrokenStream("an event is no JSON") from None
    if not isinstance(event, dict):
        raise BrokenStream("an event is no JSON object")
    return event
