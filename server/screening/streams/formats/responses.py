"""Events of `/v1/responses`."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from server.error_shapes import RESPONSES, SentStream
from server.screening.streams.formats.base import (
    NO_OPTIONS,
    Group,
    Slot,
    StreamFormat,
    StreamOptions,
    fields_of,
    framed,
    is_error,
    place,
    texts_under,
    with_verdict,
)
from server.screening.streams.formats.delivered import DeliveredOutput, Mark


class ResponsesFormat(StreamFormat):
    """`/v1/responses`, whose last event repeats the whole response."""

    has_last_event = True

    _LAST = ("response.completed", "response.incomplete", "response.failed")

    def __init__(self, options: StreamOptions = NO_OPTIONS) -> None:
        super().__init__(options)
        self._response: dict[str, Any] = {}
        self._delivered = DeliveredOutput()
        self._is_created = self._is_complete = False
        self._number = -1

    def observe(self, event: dict[str, Any]) -> None:
        if isinstance(number := event.get("sequence_number"), int):
            self._number = max(self._number, number)
        self._is_complete = self._is_complete or event.get("type") in self._LAST or is_error(event)

    def passed(self, event: dict[str, Any]) -> None:
        if isinstance(response := event.get("response"), dict):
            self._response = {name: item for name, item in response.items() if name != "output"}

    def mark(self, event: dict[str, Any]) -> Mark | bool | None:
        # True: the event is about the response as a whole
        return True if "response" in event else Mark.of(event)

    def on_sent(self, mark: Mark | bool, texts: Sequence[str]) -> None:
        if isinstance(mark, Mark):
            self._delivered.add(mark, texts)
        else:
            self._is_created = True

    def sent(self) -> SentStream:
        if not self._is_created:
            return SentStream(None, self._number)
        return SentStream(self._whole({}), self._number)

    @property
    def is_complete(self) -> bool:
        return self._is_complete

    def slots(self, event: dict[str, Any]) -> Sequence[Slot]:
        kind = event.get("type")
        if not (
            isinstance(kind, str) and kind.endswith(".delta") and texts_under(event, ("delta",))
        ):
            return ()
        numbers = [
            place(event.get(name)) for name in ("output_index", "content_index", "summary_index")
        ]
        channel = (kind, place(event.get("item_id")), *numbers)
        path = f"output[{numbers[0]}].{kind}"
        return [Slot("answer", channel, event, "delta", path)]

    def ended_groups(self, event: dict[str, Any]) -> Sequence[Group]:
        kind = str(event.get("type"))
        # a `.done` event repeats the text as a whole: no more of it comes
        return ["answer"] if kind in self._LAST or kind.endswith(".done") else ()

    def ends_channels(self, event: dict[str, Any]) -> bool:
        # that of another item may not be over
        return event.get("type") in self._LAST

    def groups(self, event: dict[str, Any]) -> Sequence[Group]:
        return ["answer"]

    def carries_verdict(self, event: dict[str, Any]) -> bool:
        return event.get("type") in self._LAST

    def error_event(self, event: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        if event.get("type") == "error":
            return "error", event
        return RESPONSES.event(fields_of(event), self.options.request_id, self.sent())

    def cut_events(self, group: Group, verdict: Mapping[str, Any] | None) -> Iterator[bytes]:
        for event in self._cut_events(verdict):
            self._number += 1
            kind = event["type"]
            yield framed({"type": kind, "sequence_number": self._number, **event}, kind)

    def _cut_events(self, verdict: Mapping[str, Any] | None) -> Iterator[dict[str, Any]]:
        if not self._is_created:
            response = self._whole({"status": "in_progress"})
            yield {"type": "response.created", "response": response}
        if (message := self.options.message) is not None:
            yield from self._delivered.text_events(message)
        yield from self._delivered.closing_events()
        details = {"status": "incomplete", "incomplete_details": {"reason": "content_filter"}}
        event = {"type": "response.incomplete", "response": self._whole(details)}
        yield with_verdict(event, verdict)

    def _whole(self, details: Mapping[str, Any]) -> dict[str, Any]:
        """The response, with the output that has left."""
        unknown = {"id": "cut", "object": "response", "created_at": int(time.time()), "model": ""}
        return {**unknown, **self._response, **details, "output": self._delivered.output()}

    def closing_events(self, verdict: Mapping[str, Any] | None) -> Iterator[bytes]:
        return iter(())
