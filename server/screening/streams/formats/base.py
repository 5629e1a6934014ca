"""What the events of all streamed routes have in common.

An event is a parsed JSON object. New text stands in slots: a slot's `channel` is the text that it
adds to, its `group` (a choice, an item) what ends together. All other strings of an event are whole
texts, which are read as those of an answer that is not streamed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from server.screening.texts.json_texts import texts_of
from server.wire.strict_json import encode_json

Group = Hashable


@dataclass(frozen=True, slots=True)
class Slot:
    """A string `holder[key]` of an event that adds to the text of `channel`.

    `quoted`: it is a part of JSON, where what is put in must be escaped.
    """

    group: Group
    channel: Hashable
    holder: Any
    key: Any
    path: str
    quoted: bool = False

    @property
    def text(self) -> str:
        """What stands there."""
        return str(self.holder[self.key])


def framed(event: Mapping[str, Any], name: str = "") -> bytes:
    """One event as bytes."""
    head = f"event: {name}\n" if name else ""
    return head.encode() + b"data: " + encode_json(event) + b"\n\n"


class StreamFormat(ABC):
    """What one stream's events are, and what has been seen of them; a new one for each stream."""

    def note(self, event: dict[str, Any]) -> None:  # noqa: B027  # not all need to
        """An event has come: each is told once, in order, before anything is asked of it."""

    @abstractmethod
    def slots(self, event: dict[str, Any]) -> Sequence[Slot]:
        """Where new text stands in an event; of equal events the same, in the same order."""

    @abstractmethod
    def over(self, event: dict[str, Any]) -> Sequence[Group]:
        """The groups that this event ends."""

    def split(self, event: dict[str, Any]) -> Sequence[dict[str, Any]]:
        """The event as several, each of one group at most."""
        return (event,)

    def groups(self, event: dict[str, Any]) -> Sequence[Group]:
        """What an event belongs to; empty: to all, so that it waits for all before it."""
        return [slot.group for slot in self.slots(event)]

    def mark(self, event: dict[str, Any]) -> Any:
        """What `sent` is to be told of an event, which is not kept until then; None for nothing."""
        return None

    def sent(self, mark: Any) -> None:  # noqa: B027  # most need not know
        """An event has left."""

    def carries_verdict(self, event: dict[str, Any]) -> bool:
        """Whether the verdict of the request goes into this event: the last one has it."""
        return False

    @abstractmethod
    def cut(self, group: Group, verdict: Mapping[str, Any]) -> Iterator[bytes]:
        """The events that end `group` in its middle, as a content filter does."""

    @abstractmethod
    def close(self, verdict: Mapping[str, Any]) -> Iterator[bytes]:
        """The events that end the stream when all groups have been cut."""


def other_slots(
    group: Group, holder: dict[str, Any], path: str, known: Collection[tuple[int, str]]
) -> Iterator[Slot]:
    """Slots of all texts in `holder` that are not in `known` (of a holder's id, and a key): what a
    delta brings beside what the format knows adds to a text of its own as well."""
    for piece in texts_of(holder, "response").pieces:
        if not piece.is_key and (id(piece.holder), piece.key) not in known:
            channel = (group, "other", piece.path)
            yield Slot(group, channel, piece.holder, piece.key, f"{path}.{piece.path}")


def texts_under(holder: Any, keys: Sequence[str]) -> list[str]:
    """Those of `keys` that have a text in `holder`."""
    return [key for key in keys if isinstance(holder, dict) and isinstance(holder.get(key), str)]
