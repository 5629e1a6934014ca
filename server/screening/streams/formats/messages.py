"""Events of Anthropic's `/v1/messages`."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

from server.error_shapes import ANTHROPIC, ErrorFields, SentStream
from server.screening.streams.formats.base import (
    NO_OPTIONS,
    Group,
    Slot,
    StreamFormat,
    StreamOptions,
    fields_of,
    framed,
    is_error,
    other_slots,
    place,
    texts_under,
    with_verdict,
)


class MessagesFormat(StreamFormat):
    """Anthropic's `/v1/messages`."""

    has_last_event = True

    _DELTAS = {
        "text_delta": "text",
        "thinking_delta": "thinking",
        "input_json_delta": "partial_json",
    }

    def __init__(self, options: StreamOptions = NO_OPTIONS) -> None:
        super().__init__(options)
        self._is_started = self._is_complete = False
        self._open_block: Any = None
        self._is_text = self._is_call = False
        self._next_index = 0
        self._tokens = 0

    def observe(self, event: dict[str, Any]) -> None:
        self._tokens += event.get("type") == "content_block_delta"
        is_last = event.get("type") == "message_stop" or is_error(event)
        self._is_complete = self._is_complete or is_last

    @property
    def is_complete(self) -> bool:
        return self._is_complete

    def slots(self, event: dict[str, Any]) -> Sequence[Slot]:
        kind, index = event.get("type"), place(event.get("index"))
        delta = event.get("delta")
        if kind == "content_block_start" and isinstance(event.get("content_block"), dict):
            block = event["content_block"]
            # all else of a block is there as a whole when it starts
            return [_slot(index, block, key) for key in texts_under(block, ("text", "thinking"))]
        if kind != "content_block_delta" or not isinstance(delta, dict):
            return ()
        key = self._DELTAS.get(str(delta.get("type")), "")
        if not isinstance(delta.get(key), str):
            return list(other_slots("answer", delta, f"content[{index}]", ()))
        return [_slot(index, delta, key)]

    def signed_channel(self, event: dict[str, Any]) -> Hashable | None:
        delta = event.get("delta")
        is_signature = isinstance(delta, dict) and delta.get("type") == "signature_delta"
        return (event.get("index"), "thinking") if is_signature else None

    def ended_groups(self, event: dict[str, Any]) -> Sequence[Group]:
        return ["answer"] if event.get("type") in {"message_delta", "message_stop"} else ()

    def groups(self, event: dict[str, Any]) -> Sequence[Group]:
        return ["answer"]

    def mark(self, event: dict[str, Any]) -> tuple[Any, Any, str]:
        block = event.get("content_block")
        block_type = str(block.get("type")) if isinstance(block, dict) else ""
        return event.get("type"), event.get("index"), block_type

    def on_sent(self, mark: tuple[Any, Any, str], texts: Sequence[str]) -> None:
        kind, index, block_type = mark
        if kind == "message_start":
            self._is_started = True
        elif kind == "content_block_start":
            self._open_block, self._is_text = index, block_type == "text"
            self._is_call = block_type.endswith("tool_use")
            if isinstance(index, int):
                self._next_index = max(self._next_index, index + 1)
        elif kind == "content_block_stop":
            self._open_block = None

    def carries_verdict(self, event: dict[str, Any]) -> bool:
        return event.get("type") == "message_delta"

    def error_event(self, event: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        error = event.get("error")
        is_ours = event.get("type") == "error" and isinstance(error, dict)
        if is_ours and len(texts_under(error, ("type", "message"))) == 2:
            return "error", event
        return "error", ANTHROPIC.body(fields_of(event), self.options.request_id)

    def cut_events(self, group: Group, verdict: Mapping[str, Any] | None) -> Iterator[bytes]:
        if self._open_block is not None and self._is_call:
            # clients take a call for whole where its message ends, even if its block does not
            fields = ErrorFields(
                400,
                self.options.message or "The policy does not let this call of a tool pass.",
                "invalid_request_error",
                code="content_filter",
            )
            name, error = ANTHROPIC.event(fields, self.options.request_id, SentStream())
            yield framed(with_verdict(error, verdict), name)
            return
        yield from (framed(event, event["type"]) for event in self._refusal(verdict))

    def _refusal(self, verdict: Mapping[str, Any] | None) -> list[dict[str, Any]]:
        """The events that end the message where no call is open."""
        events: list[dict[str, Any]] = []
        if not self._is_started:
            events.append({"type": "message_start", "message": dict(_EMPTY)})
        if (message := self.options.message) is not None:
            events += self._text_events(message)
        if self._open_block is not None:
            events.append({"type": "content_block_stop", "index": self._open_block})
            self._open_block = None
        delta = {
            "type": "message_delta",
            "delta": {"stop_reason": "refusal", "stop_sequence": None},
            "usage": {"output_tokens": self._tokens},
        }
        return [*events, with_verdict(delta, verdict), {"type": "message_stop"}]

    def _text_events(self, text: str) -> Iterator[dict[str, Any]]:
        """The events that add a text to the block that is open, or to one of its own."""
        if self._open_block is not None and not self._is_text:
            yield {"type": "content_block_stop", "index": self._open_block}
            self._open_block = None
        if self._open_block is None:
            self._open_block = self._next_index
            block = {"type": "text", "text": ""}
            yield {"type": "content_block_start", "index": self._open_block, "content_block": block}
        delta = {"type": "text_delta", "text": text}
        yield {"type": "content_block_delta", "index": self._open_block, "delta": delta}

    def closing_events(self, verdict: Mapping[str, Any] | None) -> Iterator[bytes]:
        return iter(())


_EMPTY: Mapping[str, Any] = {
    "id": "cut",
    "type": "message",
    "role": "assistant",
    "model": "",
    "content": [],
    "stop_reason": None,
    "stop_sequence": None,
    "usage": {"input_tokens": 0, "output_tokens": 0},
}
"""The message of a stream that is cut before it began."""


def _slot(index: Any, holder: dict[str, Any], key: str) -> Slot:
    path = f"content[{index}].{key}"
    return Slot("answer", (index, key), holder, key, path, is_signed=key == "thinking")
