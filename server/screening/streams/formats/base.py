"""The interface of the event formats of all streamed routes.

An event is a parsed JSON object. New text stands in slots: the `channel` of a slot is the text that
it adds to, its `group` (a choice, an item) the texts that end together. All other strings of an
event are whole texts, which are read as those of a response that is not streamed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from server.screening.streams.sse import BrokenStream
from server.screening.texts.json_texts import texts_of
from server.wire.strict_json import encode_json

Group = Hashable
_SIGNED = "reasoning_details"
"""Thoughts in chunks of chats, each with the signature of the model's maker."""


@dataclass(frozen=True, slots=True)
class Slot:
    """A string `holder[key]` of an event that adds to the text of `channel`.

    `is_signed`: a signature may cover it, so that it is not altered. `ends`: the channel whose text
    is complete where this one has text.
    """

    group: Group
    channel: Hashable
    holder: Any
    key: Any
    path: str
    is_signed: bool = False
    ends: Hashable = None

    @property
    def text(self) -> str:
        """The string."""
        return str(self.holder[self.key])


def framed(event: Mapping[str, Any], name: str = "") -> bytes:
    """One event as bytes."""
    head = f"event: {name}\n" if name else ""
    return head.encode() + b"data: " + encode_json(event) + b"\n\n"


class StreamFormat(ABC):
    """Reads the events of one stream, and knows the state that they have left it in."""

    def observe(self, event: dict[str, Any]) -> None:  # noqa: B027  # not all need to
        """Called once for each event, in order, before all other methods."""

    @abstractmethod
    def slots(self, event: dict[str, Any]) -> Sequence[Slot]:
        """The slots of an event; those of equal events are the same, in the same order."""

    @abstractmethod
    def ended_groups(self, event: dict[str, Any]) -> Sequence[Group]:
        """The groups that this event ends."""

    def split(self, event: dict[str, Any]) -> Sequence[dict[str, Any]]:
        """The event as several, of at most one group each."""
        return (event,)

    def groups(self, event: dict[str, Any]) -> Sequence[Group]:
        """The groups of an event; none for one that waits for all events before it."""
        return [slot.group for slot in self.slots(event)]

    def ends_channels(self, event: dict[str, Any]) -> bool:
        """Whether an event that ends groups also ends all of their texts."""
        return True

    def signed_channel(self, event: dict[str, Any]) -> Hashable | None:
        """The channel whose text an event signs, None where it signs none."""
        return None

    def mark(self, event: dict[str, Any]) -> Any:
        """The facts of an event that `on_sent` needs, since events are not kept; None if none."""
        return None

    def on_sent(self, mark: Any) -> None:  # noqa: B027  # most need not know
        """Called when an event with a mark has been sent."""

    def carries_verdict(self, event: dict[str, Any]) -> bool:
        """Whether the verdict of the request goes into this event, which is the last one."""
        return False

    def verdict_holder(self, event: dict[str, Any]) -> dict[str, Any] | None:
        """The object in which such an event has the verdict, as `guard`; None: it can have none."""
        return event

    @abstractmethod
    def cut_events(self, group: Group, verdict: Mapping[str, Any]) -> Iterator[bytes]:
        """The events that end `group` in its middle, as a content filter does."""

    @abstractmethod
    def closing_events(self, verdict: Mapping[str, Any]) -> Iterator[bytes]:
        """The events that end the stream when all groups have been cut."""


def place(value: Any) -> int | str | None:
    """The `value` that tells texts of a stream apart: an index, an id, or none.

    Raises BrokenStream for any other, which clients would read in different ways.
    """
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if value is None or (isinstance(value, int | str) and not isinstance(value, bool)):
        return value
    raise BrokenStream("an index in an event is no number")


def is_error(event: Mapping[str, Any]) -> bool:
    """Whether an event reports an error, as OpenAI's and Anthropic's servers do in a stream."""
    return bool(event.get("error")) or event.get("type") == "error"


def masked_error(event: Mapping[str, Any], error: Mapping[str, Any]) -> dict[str, Any]:
    """An event that reports `error`, of OpenAI's schema, in place of that in `event`."""
    if event.get("type") != "error":
        return {"error": error}
    if event.get("error"):
        return {"type": "error", "error": error}
    # in `/v1/responses` the members of the error are those of the event
    number = event.get("sequence_number")
    numbered = {"sequence_number": number} if isinstance(number, int) else {}
    return {**error, "type": "error", **numbered}


def other_slots(
    group: Group, holder: dict[str, Any], path: str, known: Collection[tuple[int, str]]
) -> Iterator[Slot]:
    """Slots of the texts in `holder` beside those that the format knows, each with its channel.

    `known` has the `(id(holder), key)` of each slot that the format knows.
    """
    for piece in texts_of(holder, "response", are_whole=False, without=known).pieces:
        if piece.kind not in {"key", "number"}:
            is_signed = piece.path.startswith(_SIGNED)
            channel = other_channel(group, piece.path)
            place = f"{path}.{piece.path}"
            yield Slot(group, channel, piece.holder, piece.key, place, is_signed=is_signed)


def other_channel(group: Group, path: str) -> Hashable:
    """The channel of a text at `path` that a format does not know."""
    return group, "other", path


def texts_under(holder: Any, keys: Sequence[str]) -> list[str]:
    """Those of `keys` that have a text in `holder`."""
    return [key for key in keys if isinstance(holder, dict) and isinstance(holder.get(key), str)]
