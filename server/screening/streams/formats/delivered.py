"""The output that has left of a stream of `/v1/responses`: items, their parts and texts.

A stream that is cut ends with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

MAX_CHARS = 4 * 2**20
"""Characters of a response that are kept; what comes after them leaves too, but is not repeated."""
MAX_ITEMS = 10_000
"""Items and parts of a response that are kept."""

_PART_TEXTS = {
    "response.output_text.delta": ("content", "output_text", "text"),
    "response.refusal.delta": ("content", "refusal", "refusal"),
    "response.reasoning_text.delta": ("content", "reasoning_text", "text"),
    "response.reasoning_summary_text.delta": ("summary", "summary_text", "text"),
}
"""By the type of an event: the list of its item that its text is in, the type of the part, and the
name of the text."""
_ITEM_TEXTS = {
    "response.function_call_arguments.delta": "arguments",
    "response.mcp_call_arguments.delta": "arguments",
    "response.custom_tool_call_input.delta": "input",
    "response.code_interpreter_call_code.delta": "code",
}
_PARTS_OF_MESSAGES = {"output_text", "refusal"}
_STARTS = {
    "response.content_part.added": "content",
    "response.reasoning_summary_part.added": "summary",
}
_ENDS = {
    "response.content_part.done": "content",
    "response.reasoning_summary_part.done": "summary",
}


@dataclass(slots=True)
class _Texts:
    """A part or an item, `members`, whose text `name` grows."""

    members: dict[str, Any]
    name: str
    pieces: list[str] = field(default_factory=list)
    is_open: bool = True

    def whole(self) -> dict[str, Any]:
        """The part or the item with its text."""
        if not self.pieces:
            return dict(self.members)
        return {**self.members, self.name: str(self.members.get(self.name) or "") + self.text}

    @property
    def text(self) -> str:
        return "".join(self.pieces)


@dataclass(slots=True)
class _Item:
    own: _Texts
    parts: dict[tuple[str, int], _Texts] = field(default_factory=dict)

    @property
    def is_message(self) -> bool:
        return self.own.members.get("type") == "message"

    def whole(self) -> dict[str, Any]:
        """The item with its parts, as far as they have left."""
        item = self.own.whole()
        for listed in ("content", "summary"):
            parts = [
                part.whole() for (name, _), part in sorted(self.parts.items()) if name == listed
            ]
            if parts:
                item[listed] = parts
        if self.own.is_open and ("status" in item or self.is_message):
            item["status"] = "incomplete"
        return item


@dataclass(frozen=True, slots=True)
class Mark:
    """The facts of an event that has texts or items: `value` is its item or its part."""

    kind: str
    output_index: int
    part_index: int
    item_id: str
    value: dict[str, Any] | None

    @classmethod
    def of(cls, event: Mapping[str, Any]) -> Mark | None:
        """None for an event that changes nothing here."""
        kind = event.get("type")
        known = (*_PART_TEXTS, *_ITEM_TEXTS, *_STARTS, *_ENDS)
        if kind not in known and kind not in {ITEM_ADDED, ITEM_DONE}:
            return None
        value = event.get("item", event.get("part"))
        index = event.get("content_index", event.get("summary_index"))
        item_id = event.get("item_id")
        return cls(
            str(kind),
            _index(event.get("output_index")),
            _index(index),
            item_id if isinstance(item_id, str) else "",
            value if isinstance(value, dict) else None,
        )


ITEM_ADDED, ITEM_DONE = "response.output_item.added", "response.output_item.done"


class DeliveredOutput:
    """Collects the output of a response from the marks of events that have left."""

    def __init__(self) -> None:
        self._items: dict[int, _Item] = {}
        self._chars = self._count = 0

    def add(self, mark: Mark, texts: Sequence[str]) -> None:
        """An event has left, with `texts` in its slots."""
        if mark.kind in {ITEM_ADDED, ITEM_DONE}:
            self._add_item(mark)
        elif listed := _STARTS.get(mark.kind) or _ENDS.get(mark.kind):
            self._add_part(mark, listed)
        elif texts:
            self._add_text(mark, texts[0])

    def output(self) -> list[dict[str, Any]]:
        """The member `output` of the response."""
        return [item.whole() for _, item in sorted(self._items.items())]

    def text_events(self, text: str) -> Iterator[dict[str, Any]]:
        """The events that add a text to the part that is open, or to a message of its own."""
        at = max(self._items, default=-1)
        place = self._open_text(at)
        if place is None:
            at += 1
            item = {
                "id": f"msg_cut_{at}",
                "type": "message",
                "role": "assistant",
                "status": "in_progress",
                "content": [],
            }
            self._items[at] = _Item(_Texts(item, ""))
            yield {"type": ITEM_ADDED, "output_index": at, "item": item}
            part: dict[str, Any] = {"type": "output_text", "text": "", "annotations": []}
            place = (0, _Texts(part, "text"))
            self._items[at].parts["content", 0] = place[1]
            yield {"type": "response.content_part.added", **self._at(at, 0), "part": part}
        index, texts = place
        texts.pieces.append(text)
        delta = {"delta": text, "logprobs": []}
        yield {"type": "response.output_text.delta", **self._at(at, index), **delta}

    def closing_events(self) -> Iterator[dict[str, Any]]:
        """The events that end the parts and the messages that are open.

        Calls of tools are left open: half a call must not look like one that may be run.
        """
        for at, item in sorted(self._items.items()):
            if not (item.own.is_open and item.is_message):
                continue
            for (listed, index), part in sorted(item.parts.items()):
                kind = part.members.get("type")
                if listed != "content" or not part.is_open or kind not in _PARTS_OF_MESSAGES:
                    continue
                part.is_open = False
                whole = part.whole()
                text = {part.name: whole.get(part.name, "")}
                logprobs: dict[str, Any] = {"logprobs": []} if kind == "output_text" else {}
                yield {"type": f"response.{kind}.done", **self._at(at, index), **text, **logprobs}
                yield {"type": "response.content_part.done", **self._at(at, index), "part": whole}
            whole = item.whole()
            item.own = _Texts(whole, "", is_open=False)
            item.parts.clear()
            yield {"type": ITEM_DONE, "output_index": at, "item": whole}

    def _at(self, at: int, index: int) -> dict[str, Any]:
        item_id = self._items[at].own.members.get("id")
        return {"item_id": item_id, "output_index": at, "content_index": index}

    def _open_text(self, at: int) -> tuple[int, _Texts] | None:
        item = self._items.get(at)
        if item is None or not item.own.is_open:
            return None
        opened = [
            (index, part)
            for (listed, index), part in sorted(item.parts.items())
            if listed == "content" and part.is_open and part.members.get("type") == "output_text"
        ]
        return opened[-1] if opened else None

    def _add_item(self, mark: Mark) -> None:
        value = mark.value or {}
        if mark.kind == ITEM_DONE:
            self._items[mark.output_index] = _Item(_Texts(value, "", is_open=False))
        elif self._has_room():
            self._items[mark.output_index] = _Item(_Texts(value, ""))

    def _add_part(self, mark: Mark, listed: str) -> None:
        item = self._item(mark, "message")
        if item is None or not (mark.kind in _ENDS or self._has_room()):
            return
        value = mark.value or {}
        name = "refusal" if value.get("type") == "refusal" else "text"
        is_open = mark.kind in _STARTS
        item.parts[listed, mark.part_index] = _Texts(value, name, is_open=is_open)

    def _add_text(self, mark: Mark, text: str) -> None:
        self._chars += len(text)
        if self._chars > MAX_CHARS:
            return
        if name := _ITEM_TEXTS.get(mark.kind):
            if (item := self._item(mark, "function_call")) is not None:
                item.own.name = name
                item.own.pieces.append(text)
            return
        listed, kind, name = _PART_TEXTS[mark.kind]
        is_message = kind in _PARTS_OF_MESSAGES
        item = self._item(mark, "message" if is_message else "reasoning")
        if item is None:
            return
        part = item.parts.get((listed, mark.part_index))
        if part is None:
            if not self._has_room():
                return
            members: dict[str, Any] = {"type": kind} | (
                {"annotations": []} if kind == "output_text" else {}
            )
            part = item.parts[listed, mark.part_index] = _Texts(members, name)
        part.pieces.append(text)

    def _item(self, mark: Mark, kind: str) -> _Item | None:
        """The item of a mark; one that has not been announced is made."""
        item = self._items.get(mark.output_index)
        if item is None and self._has_room():
            role = {"role": "assistant", "content": []} if kind == "message" else {}
            members: dict[str, Any] = {
                "id": mark.item_id,
                "type": kind,
                "status": "in_progress",
                **role,
            }
            item = self._items[mark.output_index] = _Item(_Texts(members, ""))
        return item

    def _has_room(self) -> bool:
        self._count += 1
        return self._count <= MAX_ITEMS


def _index(value: object) -> int:
    return value if isinstance(value, int) else 0
