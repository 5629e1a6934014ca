"""The interface of the event formats of all streamed routes.

An event is a parsed JSON object. New text stands in slots: the `channel` of a slot is the text that
it adds to, its `group` (a choice, an item) the texts that end together. All other strings of an
event are whole texts, which are read as those of a response that is not streamed.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from server.error_shapes import ErrorFields, SentStream
from server.screening.bodies.texts import texts_of
from server.screening.streams.sse import BrokenStream
from server.wire.replies import in_one_line
from server.wire.strict_json import encode_json

Group = Hashable
SIGNED = {"reasoning_details": "text", "thinking_blocks": "thinking"}
"""Thoughts in chunks of chats, each with the signature of the model's maker: the lists, and the
names of the texts."""
_IN_SIGNED = re.compile(rf"(?:^|\.)(?:{'|'.join(SIGNED)})\[")
_IN_WHOLE = re.compile(r"(?:^|\.)(?:annotations|citations?|input|arguments|metadata)[.\[]")
"""Objects that one event has as a whole: what stands in the next one goes on with none of them."""


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
    return head.encode() + b"data: " + in_one_line(encode_json(event)) + b"\n\n"


def with_verdict(event: dict[str, Any], verdict: Mapping[str, Any] | None) -> dict[str, Any]:
    """The event with the `guard` object, if there is one."""
    return event if verdict is None else {**event, "guard": verdict}


@dataclass(frozen=True, slots=True)
class StreamOptions:
    """What the request and its policy say about how a stream ends.

    `include_usage`: the request asks for a chunk of usage. `message`: what the policy says in place
    of a blocked answer, which is then the last text of a stream that is cut. `has_form`: the answer
    is of a given form, so that a part of it is of no use.
    """

    include_usage: bool = False
    message: str | None = None
    has_form: bool = False
    request_id: str = ""


NO_OPTIONS = StreamOptions()


class StreamFormat(ABC):
    """Reads the events of one stream, and knows the state that they have left it in."""

    def __init__(self, options: StreamOptions = NO_OPTIONS) -> None:
        self.options = options

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

    def passed(self, event: dict[str, Any]) -> None:  # noqa: B027  # not all need to
        """Called when all texts of an event that are not in slots have been read, and may leave."""

    def ends_channels(self, event: dict[str, Any]) -> bool:
        """Whether an event that ends groups also ends all of their texts."""
        return True

    def signed_channel(self, event: dict[str, Any]) -> Hashable | None:
        """The channel whose text an event signs, None where it signs none."""
        return None

    def mark(self, event: dict[str, Any]) -> Any:
        """The facts of an event that `on_sent` needs, since events are not kept; None if none."""
        return None

    def on_sent(self, mark: Any, texts: Sequence[str]) -> None:  # noqa: B027  # most need not know
        """Called when an event with a mark has been sent, or what was free of it; `texts` are those
        that its slots had."""

    def sent(self) -> SentStream:
        """What has left of the stream, as far as an error at its end refers to it."""
        return SentStream()

    reports_errors: ClassVar[bool] = True
    """Whether its error events are for clients, and no model reads them."""
    has_last_event: ClassVar[bool] = False
    """Whether every stream of this API has a last event of its own."""

    @property
    def is_complete(self) -> bool:
        """Whether that event has come."""
        return False

    def error_event(self, event: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """The name and the data of an error that the upstream reports in its stream, in the shape
        of this API."""
        return "", event

    def carries_verdict(self, event: dict[str, Any]) -> bool:
        """Whether the verdict of the request goes into this event, which is the last one."""
        return False

    def verdict_holder(self, event: dict[str, Any]) -> dict[str, Any] | None:
        """The object in which such an event has the verdict, as `guard`; None: it can have none."""
        return event

    def give_verdict(self, event: dict[str, Any], verdict: Mapping[str, Any] | None) -> None:
        """Put the verdict into an event, if there is one to be told."""
        holder = self.verdict_holder(event)
        if holder is not None and verdict is not None:
            holder["guard"] = verdict

    @abstractmethod
    def cut_events(self, group: Group, verdict: Mapping[str, Any] | None) -> Iterator[bytes]:
        """The events that end `group` in its middle, as a content filter does; `verdict` None is
        not told."""

    @abstractmethod
    def closing_events(self, verdict: Mapping[str, Any] | None) -> Iterator[bytes]:
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


def fields_of(event: Mapping[str, Any]) -> ErrorFields:
    """What an error event says, of whichever API it is."""
    error = event.get("error")
    # in `/v1/responses` the members of the error are those of the event
    members = error if isinstance(error, dict) else event
    if isinstance(error, str):
        members = {"message": error}
    elif "message" not in members and isinstance(detail := members.get("detail"), str):
        members = {**members, "message": detail}
    text = {
        name: value
        for name in ("message", "type", "code", "param")
        if isinstance(value := members.get(name), str)
    }
    status = members.get("code")
    return ErrorFields(
        status if isinstance(status, int) and 400 <= status <= 599 else 500,
        text.get("message", "The upstream reported an error."),
        text.get("type", "server_error") if members is not event else "server_error",
        text.get("code"),
        text.get("param"),
    )


def other_slots(
    group: Group, holder: dict[str, Any], path: str, known: Collection[tuple[int, str]]
) -> Iterator[Slot]:
    """Slots of the texts in `holder`, at `path`, beside those that the format knows, each with its
    channel. What is in an object that comes as a whole has none.

    `known` has the `(id(holder), key)` of each slot that the format knows.
    """
    for piece in texts_of(holder, "response", are_whole=False, without=known).pieces:
        if piece.kind not in {"key", "name", "number"} and not _IN_WHOLE.search(piece.path):
            is_signed = _IN_SIGNED.search(piece.path) is not None
            place = f"{path}.{piece.path}"
            channel = other_channel(group, place)
            yield Slot(group, channel, piece.holder, piece.key, place, is_signed=is_signed)


def other_channel(group: Group, path: str) -> Hashable:
    """The channel of a text that a format does not know; `path` is its place in the answer."""
    return group, "other", path


def texts_under(holder: Any, keys: Sequence[str]) -> list[str]:
    """Those of `keys` that have a text in `holder`."""
    return [key for key in keys if isinstance(holder, dict) and isinstance(holder.get(key), str)]
