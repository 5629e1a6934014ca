"""The content of a message in Anthropic's API: blocks of text and of calls, and their events."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from server.services.text_jobs import Call
from server.services.tools.parser import CallDelta, CallEnd


def blocks_of(text: str, calls: Sequence[Call]) -> list[dict[str, Any]]:
    """The content of a whole message; none where it is empty."""
    said = [{"type": "text", "text": text}] if text else []
    return [*said, *(_tool_use(call.id, call.name, _value(call.arguments)) for call in calls)]


class ContentBlocks:
    """The events of the blocks of one message."""

    def __init__(self) -> None:
        self._next = 0
        self._open: str | None = None
        """The type of the open block, which is the last one."""

    def text(self, text: str) -> Iterator[dict[str, Any]]:
        """More text: of the block that is open, else of a new one."""
        if self._open != "text":
            yield from self.begin({"type": "text", "text": ""})
        yield self._delta({"type": "text_delta", "text": text})

    def call(self, event: CallDelta | CallEnd) -> Iterator[dict[str, Any]]:
        """A part of a call, or its end."""
        if isinstance(event, CallEnd):
            yield from self.close()
            return
        if event.id is not None and event.name is not None:
            yield from self.begin(_tool_use(event.id, event.name, {}))
        if event.arguments:
            yield self._delta({"type": "input_json_delta", "partial_json": event.arguments})

    def begin(self, block: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """A block begins, and the one before has ended."""
        yield from self.close()
        self._open = str(block["type"])
        yield {"type": "content_block_start", "index": self._next, "content_block": block}
        self._next += 1

    def close(self) -> Iterator[dict[str, Any]]:
        """The open block ends, if one is open."""
        if self._open is not None:
            self._open = None
            yield {"type": "content_block_stop", "index": self._next - 1}

    def _delta(self, delta: dict[str, Any]) -> dict[str, Any]:
        return {"type": "content_block_delta", "index": self._next - 1, "delta": delta}


def _tool_use(call_id: str, name: str, value: Any) -> dict[str, Any]:
    return {"type": "tool_use", "id": call_id, "name": name, "input": value}


def _value(arguments: str) -> Any:
    """The object that a model wrote; half a surrogate pair, which UTF-8 lacks, becomes a "?"."""
    value = json.loads(arguments)
    return json.loads(json.dumps(value, ensure_ascii=False).encode(errors="replace"))
