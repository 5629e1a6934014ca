"""Chunks of `/v1/chat/completions` and `/v1/completions`."""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

from server.screening.streams.formats.base import (
    NO_OPTIONS,
    SIGNED,
    Group,
    Slot,
    StreamFormat,
    StreamOptions,
    framed,
    other_channel,
    other_slots,
    place,
    texts_under,
    with_verdict,
)
from server.screening.streams.sse import DONE, BrokenStream

_CALLED = ("function", "custom")
"""What a call of a tool may have: a function with arguments, a tool with an input of its own."""


def _choices(event: dict[str, Any]) -> list[dict[str, Any]]:
    choices = event.get("choices")
    if not isinstance(choices, list):
        return []
    return [choice for choice in choices if isinstance(choice, dict)]


def _index(choice: dict[str, Any]) -> int:
    """Raises BrokenStream where the index of a choice is no number."""
    index = place(choice.get("index"))
    if isinstance(index, str):
        raise BrokenStream("the index of a choice is no number")
    return index or 0


class _ChoiceFormat(StreamFormat):
    """The common part of the chunks of chats and of completions."""

    _OBJECT: ClassVar[str]

    def __init__(self, options: StreamOptions = NO_OPTIONS) -> None:
        super().__init__(options)
        self._last: dict[str, Any] = {}
        self._usage: dict[str, Any] | None = None
        self._wants_usage = options.include_usage
        self._deltas = 0

    def passed(self, event: dict[str, Any]) -> None:
        self._last = {
            name: event[name] for name in ("id", "object", "created", "model") if name in event
        }

    def observe(self, event: dict[str, Any]) -> None:
        self._wants_usage = self._wants_usage or "usage" in event
        if isinstance(usage := event.get("usage"), dict):
            self._usage = usage
        self._deltas += len(_choices(event))

    def split(self, event: dict[str, Any]) -> Sequence[dict[str, Any]]:
        choices = _choices(event)
        if len(choices) < 2:
            return (event,)
        common = {name: item for name, item in event.items() if name not in {"usage", "choices"}}
        no_usage = {"usage": None} if "usage" in event else {}
        events = [{**common, "choices": [choice], **no_usage} for choice in choices]
        events[-1] |= {"usage": event["usage"]} if "usage" in event else {}
        return events

    def ended_groups(self, event: dict[str, Any]) -> Sequence[Group]:
        return [_index(choice) for choice in _choices(event) if choice.get("finish_reason")]

    def groups(self, event: dict[str, Any]) -> Sequence[Group]:
        return [_index(choice) for choice in _choices(event)]

    def carries_verdict(self, event: dict[str, Any]) -> bool:
        # a chunk of usage comes behind the last choice
        is_usage = event.get("choices") == [] and isinstance(event.get("usage"), dict)
        return is_usage or bool(self.ended_groups(event))

    def _last_chunk(self, choice: dict[str, Any], verdict: Mapping[str, Any] | None) -> bytes:
        no_usage = {"usage": None} if self._wants_usage else {}
        return framed(with_verdict({**self._head(), "choices": [choice], **no_usage}, verdict))

    def _head(self) -> dict[str, Any]:
        unknown = {"id": "cut", "object": self._OBJECT, "created": int(time.time()), "model": ""}
        return unknown | self._last

    def closing_events(self, verdict: Mapping[str, Any] | None) -> Iterator[bytes]:
        if self._wants_usage:
            # the upstream counts at the end of a response, which is not waited for
            usage = self._usage or {
                "prompt_tokens": 0,
                "completion_tokens": self._deltas,
                "total_tokens": self._deltas,
            }
            yield framed(with_verdict({**self._head(), "choices": [], "usage": usage}, verdict))
        yield f"data: {DONE}\n\n".encode()


class ChatFormat(_ChoiceFormat):
    """`/v1/chat/completions`."""

    _OBJECT = "chat.completion.chunk"

    def slots(self, event: dict[str, Any]) -> Sequence[Slot]:
        slots: list[Slot] = []
        for choice in _choices(event):
            index, delta = _index(choice), choice.get("delta")
            path = f"choices[{index}]"
            if not isinstance(delta, dict):
                continue
            known_slots = [
                Slot(index, (index, key), delta, key, f"{path}.{key}")
                for key in texts_under(delta, ("content", "refusal", "reasoning_content"))
            ]
            known_slots += _call_slots(index, delta, path)
            known = _known(known_slots)
            for number, call in _calls(delta):
                known_slots += other_slots(index, call, f"{path}.tool_calls[{number}]", known)
            known = _known(known_slots)
            slots += known_slots
            if len(known) < len(delta):
                slots += other_slots(index, delta, path, known)
        return slots

    def signed_channel(self, event: dict[str, Any]) -> Hashable | None:
        for choice in _choices(event):
            index, delta = _index(choice), choice.get("delta")
            for listed, text in SIGNED.items():
                thoughts = delta.get(listed) if isinstance(delta, dict) else None
                for number, thought in enumerate(thoughts if isinstance(thoughts, list) else ()):
                    if isinstance(thought, dict) and thought.get("signature"):
                        path = f"choices[{index}].{listed}[{number}].{text}"
                        return other_channel(index, path)
        return None

    def cut_events(self, group: Group, verdict: Mapping[str, Any] | None) -> Iterator[bytes]:
        message = self.options.message
        delta = {"content": message} if message is not None else {}
        choice = {"index": group, "delta": delta, "logprobs": None}
        yield self._last_chunk({**choice, "finish_reason": "content_filter"}, verdict)


def _known(slots: Sequence[Slot]) -> set[tuple[int, str]]:
    return {(id(slot.holder), slot.key) for slot in slots}


def _calls(delta: dict[str, Any]) -> list[tuple[int | str, dict[str, Any]]]:
    """The calls of tools in a delta, and which of the choice they are."""
    calls = delta.get("tool_calls")
    listed = [call for call in calls if isinstance(call, dict)] if isinstance(calls, list) else []
    return [(_number(call, i), call) for i, call in enumerate(listed)]


def _call_slots(index: Group, delta: dict[str, Any], choice_path: str) -> Iterator[Slot]:
    calls = _calls(delta)
    functions = [(number, call.get(kind)) for number, call in calls for kind in _CALLED]
    functions.append(("call", delta.get("function_call")))
    for number, function in functions:
        for key in texts_under(function, ("name", "arguments", "input")):
            assert isinstance(function, dict)
            channel = (index, "tool", number, key)
            path = f"{choice_path}.tool_calls[{number}].{key}"
            name = (index, "tool", number, "name") if key != "name" else None
            yield Slot(index, channel, function, key, path, ends=name)


def _number(call: dict[str, Any], position: int) -> int | str:
    """Which call of a choice this one goes on with: the one at its position where it says none."""
    number = place(call.get("index"))
    return position if number is None else number


class CompletionFormat(_ChoiceFormat):
    """`/v1/completions`."""

    _OBJECT = "text_completion"

    def slots(self, event: dict[str, Any]) -> Sequence[Slot]:
        slots: list[Slot] = []
        for choice in _choices(event):
            index = _index(choice)
            path = f"choices[{index}]"
            slots += [
                Slot(index, (index, key), choice, key, f"{path}.{key}")
                for key in texts_under(choice, ("text", "reasoning", "reasoning_content"))
            ]
        return slots

    def cut_events(self, group: Group, verdict: Mapping[str, Any] | None) -> Iterator[bytes]:
        choice = {"index": group, "text": self.options.message or "", "logprobs": None}
        yield self._last_chunk({**choice, "finish_reason": "content_filter"}, verdict)
