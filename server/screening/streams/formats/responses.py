"""Events of `/v1/responses`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from server.screening.streams.formats.base import (
    Group,
    Slot,
    StreamFormat,
    framed,
    place,
    texts_under,
)


class ResponsesFormat(StreamFormat):
    """`/v1/responses`, whose last event repeats the whole response."""

    _LAST = ("response.completed", "response.incomplete", "response.failed")

    def __init__(self) -> None:
        self._response: dict[str, Any] = {}
        self._number = 0

    def observe(self, event: dict[str, Any]) -> None:
        if isinstance(response := event.get("response"), dict):
            self._response = response
        if isinstance(number := event.get("sequence_number"), int):
            self._number = number

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

    def cut_events(self, group: Group, verdict: Mapping[str, Any]) -> Iterator[bytes]:
        response = {
            **{name: item for name, item in self._response.items() if name != "output"},
            "object": "response",
            "status": "incomplete",
            "incomplete_details": {"reason": "content_filter"},
            "output": [],
        }
        number = self._number + 1
        event = {"type": "response.incomplete", "response": response, "sequence_number": number}
        yield framed({**event, "guard": verdict}, "response.incomplete")

    def closing_events(self, verdict: Mapping[str, Any]) -> Iterator[bytes]:
        return iter(())
