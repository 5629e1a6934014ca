"""The output of a response in OpenAI's newer API: messages and calls of tools, and their events."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from server.services.tools.parser import CallDelta, CallEnd

ItemEvent = tuple[str, dict[str, Any]]
"""The type of an event without `response.`, and its members."""


@dataclass(slots=True)
class _Message:
    """A message with one part, which is a text, or a refusal in place of one."""

    position: int
    kind: Literal["output_text", "refusal"] = "output_text"
    id: str = field(default_factory=lambda: f"msg_{uuid.uuid4().hex}")
    texts: list[str] = field(default_factory=list)

    def begin(self) -> Iterator[ItemEvent]:
        item = self.item("in_progress") | {"content": []}
        yield "output_item.added", {"output_index": self.position, "item": item}
        yield "content_part.added", self._place() | {"part": _part(self.kind, "")}

    def add(self, text: str) -> Iterator[ItemEvent]:
        self.texts.append(text)
        yield f"{self.kind}.delta", self._place() | {"delta": text} | self._logprobs()

    def end(self, status: str) -> Iterator[ItemEvent]:
        text = "".join(self.texts)
        name = "text" if self.kind == "output_text" else "refusal"
        yield f"{self.kind}.done", self._place() | {name: text} | self._logprobs()
        yield "content_part.done", self._place() | {"part": _part(self.kind, text)}
        yield "output_item.done", {"output_index": self.position, "item": self.item(status)}

    def item(self, status: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "type": "message",
            "status": status,
            "role": "assistant",
            "content": [_part(self.kind, "".join(self.texts))],
        }

    def _logprobs(self) -> dict[str, Any]:
        return {"logprobs": []} if self.kind == "output_text" else {}

    def _place(self) -> dict[str, Any]:
        return {"item_id": self.id, "output_index": self.position, "content_index": 0}


@dataclass(slots=True)
class _Call:
    position: int
    call_id: str
    name: str
    id: str = field(default_factory=lambda: f"fc_{uuid.uuid4().hex}")
    arguments: list[str] = field(default_factory=list)

    def begin(self) -> Iterator[ItemEvent]:
        yield (
            "output_item.added",
            {
                "output_index": self.position,
                "item": self.item("in_progress"),
            },
        )

    def add(self, arguments: str) -> Iterator[ItemEvent]:
        self.arguments.append(arguments)
        yield "function_call_arguments.delta", self._place() | {"delta": arguments}

    def end(self, status: str) -> Iterator[ItemEvent]:
        """None where the call is not whole: half a call must not look like one to be run."""
        if status != "completed":
            return
        text = "".join(self.arguments)
        done = {"name": self.name, "arguments": text}
        yield "function_call_arguments.done", self._place() | done
        yield "output_item.done", {"output_index": self.position, "item": self.item(status)}

    def item(self, status: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "type": "function_call",
            "status": status,
            "call_id": self.call_id,
            "name": self.name,
            "arguments": "".join(self.arguments),
        }

    def _place(self) -> dict[str, Any]:
        return {"item_id": self.id, "output_index": self.position}


class ResponseOutput:
    """Collects the output of one response, and tells its events."""

    def __init__(self) -> None:
        self._ended: list[dict[str, Any]] = []
        self._open: _Message | _Call | None = None

    def begin(self) -> Iterator[ItemEvent]:
        """A message begins before its text is known."""
        self._open = _Message(len(self._ended))
        yield from self._open.begin()

    def text(self, text: str) -> Iterator[ItemEvent]:
        """More text: of the message that is open, else of a new one."""
        if not isinstance(self._open, _Message):
            yield from self._close("completed")
            yield from self.begin()
        assert isinstance(self._open, _Message)
        yield from self._open.add(text)

    def refusal(self, text: str) -> Iterator[ItemEvent]:
        """A message that refuses to answer."""
        yield from self._close("completed")
        self._open = _Message(len(self._ended), "refusal")
        yield from self._open.begin()
        yield from self._open.add(text)

    def call(self, event: CallDelta | CallEnd) -> Iterator[ItemEvent]:
        """A part of a call, or its end."""
        if isinstance(event, CallEnd):
            yield from self._close("completed" if event.broken is None else "incomplete")
            return
        if event.id is not None and event.name is not None:
            yield from self._close("completed")
            self._open = _Call(len(self._ended), event.id, event.name)
            yield from self._open.begin()
        if event.arguments and isinstance(self._open, _Call):
            yield from self._open.add(event.arguments)

    def finish(self, status: str) -> Iterator[ItemEvent]:
        """The response ends with this `status`; one without output gets an empty message."""
        if self._open is None and not self._ended:
            yield from self.begin()
        yield from self._close(status)

    def items(self) -> list[dict[str, Any]]:
        """All items, the open one as far as it goes."""
        return self._ended + ([self._open.item("incomplete")] if self._open else [])

    def _close(self, status: str) -> Iterator[ItemEvent]:
        if self._open is not None:
            yield from self._open.end(status)
            self._ended.append(self._open.item(status))
            self._open = None


def _part(kind: str, text: str) -> dict[str, Any]:
    if kind == "refusal":
        return {"type": "refusal", "refusal": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
