"""Events of Anthropic's `/v1/messages`."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

from server.screening.streams.formats.base import (
    Group,
    Slot,
    StreamFormat,
    framed,
    other_slots,
    place,
    texts_under,
)


class MessagesFormat(StreamFormat):
    """Anthropic's `/v1/messages`."""

    _DELTAS = {
        "text_delta": "text",
        "thinking_delta": "thinking",
        "input_json_delta": "partial_json",
    }

    def __init__(self) -> None:
        self._open_block: Any = None
        self._tokens = 0

    def observe(self, event: dict[str, Any]) -> None:
        self._tokens += event.get("type") == "content_block_delta"

    def slots(self, event: dict[str, Any]) -> Sequence[Slot]:
        kind, index = event.get("type"), place(event.get("index"))
        delta = event.get("delta")
        if kind == "content_block_start" and isinstance(event.get("content_block"), dict):
            block = event["content_block"]
            known_slots = [
                _slot(index, block, key) for key in texts_under(block, ("text", "thinking"))
            ]
            known = {(id(slot.holder), slot.key) for slot in known_slots}
            return [*known_slots, *other_slots("answer", block, f"content[{index}]", known)]
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

    def mark(self, event: dict[str, Any]) -> tuple[Any, Any]:
        return event.get("type"), event.get("index")

    def on_sent(self, mark: tuple[Any, Any]) -> None:
        kind, index = mark
        if kind == "content_block_start":
            self._open_block = index
        elif kind == "content_block_stop":
            self._open_block = None

    def carries_verdict(self, event: dict[str, Any]) -> bool:
        return event.get("type") == "message_delta"

    def cut_events(self, group: Group, verdict: Mapping[str, Any]) -> Iterator[bytes]:
        if self._open_block is not None:
            stop = {"type": "content_block_stop", "index": self._open_block}
            yield framed(stop, "content_block_stop")
        yield framed(
            {
                "type": "message_delta",
                "delta": {"stop_reason": "refusal", "stop_sequence": None},
                "usage": {"output_tokens": self._tokens},
                "guard": verdict,
            },
            "message_delta",
        )
        yield framed({"type": "message_stop"}, "message_stop")

    def closing_events(self, verdict: Mapping[str, Any]) -> Iterator[bytes]:
        return iter(())


def _slot(index: Any, holder: dict[str, Any], key: str) -> Slot:
    path = f"content[{index}].{key}"
    return Slot("answer", (index, key), holder, key, path, is_signed=key == "thinking")
