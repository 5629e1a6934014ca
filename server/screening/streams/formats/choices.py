"""Chunks of `/v1/chat/completions` and `/v1/completions`."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from server.screening.streams.formats.base import (
    Group,
    Slot,
    StreamFormat,
    framed,
    other_slots,
    texts_under,
)
from server.screening.streams.sse import DONE


def _choices(event: dict[str, Any]) -> list[dict[str, Any]]:
    choices = event.get("choices")
    return [each for each in choices if isinstance(each, dict)] if isinstance(choices, list) else []


def _index(choice: dict[str, Any]) -> int:
    index = choice.get("index", 0)
    return index if isinstance(index, int) else 0


class _ChoiceFormat(StreamFormat):
    """What chunks of chats and of completions have in common."""

    def __init__(self) -> None:
        self._last: dict[str, Any] = {}
        self._usage: dict[str, Any] | None = None
        self._wants_usage = False
        self._deltas = 0

    def note(self, event: dict[str, Any]) -> None:
        self._last = {
            name: event[name] for name in ("id", "object", "created", "model") if name in event
        }
        self._wants_usage = self._wants_usage or "usage" in event
        if isinstance(usage := event.get("usage"), dict):
            self._usage = usage
        self._deltas += len(_choices(event))

    def split(self, event: dict[str, Any]) -> Sequence[dict[str, Any]]:
        choices = _choices(event)
        if len(choices) < 2:
            return (event,)
        told = {name: item for name, item in event.items() if name not in {"usage", "choices"}}
        absent = {"usage": None} if "usage" in event else {}
        apart = [{**told, "choices": [each], **absent} for each in choices]
        apart[-1] |= {"usage": event["usage"]} if "usage" in event else {}
        return apart

    def over(self, event: dict[str, Any]) -> Sequence[Group]:
        ended = [each for each in _choices(event) if each.get("finish_reason")]
        return [_index(each) for each in ended]

    def groups(self, event: dict[str, Any]) -> Sequence[Group]:
        return [_index(each) for each in _choices(event)]

    def carries_verdict(self, event: dict[str, Any]) -> bool:
        return bool(self.over(event))

    def _cut(self, choice: dict[str, Any], verdict: Mapping[str, Any]) -> bytes:
        absent = {"usage": None} if self._wants_usage else {}
        return framed({**self._head(), "choices": [choice], **absent, "guard": verdict})

    def _head(self) -> dict[str, Any]:
        return {"id": "cut", "created": int(time.time()), "model": ""} | self._last

    def close(self, verdict: Mapping[str, Any]) -> Iterator[bytes]:
        if self._wants_usage:
            # the upstream counts at the end of an answer, which nobody waits for
            usage = self._usage or {
                "prompt_tokens": 0,
                "completion_tokens": self._deltas,
                "total_tokens": self._deltas,
            }
            yield framed({**self._head(), "choices": [], "usage": usage})
        yield f"data: {DONE}\n\n".encode()


class ChatFormat(_ChoiceFormat):
    """`/v1/chat/completions`."""

    def slots(self, event: dict[str, Any]) -> Sequence[Slot]:
        found = []
        for choice in _choices(event):
            index, delta = _index(choice), choice.get("delta")
            at = f"choices[{index}]"
            if not isinstance(delta, dict):
                continue
            own = [
                Slot(index, (index, key), delta, key, f"{at}.{key}")
                for key in texts_under(delta, ("content", "refusal", "reasoning_content"))
            ]
            own += _calls(index, delta, at)
            known = {(id(slot.holder), slot.key) for slot in own}
            found += [*own, *other_slots(index, delta, at, known)]
        return found

    def cut(self, group: Group, verdict: Mapping[str, Any]) -> Iterator[bytes]:
        choice = {"index": group, "delta": {}, "logprobs": None, "finish_reason": "content_filter"}
        yield self._cut(choice, verdict)


def _calls(index: Group, delta: Any, at: str) -> Iterator[Slot]:
    calls = delta.get("tool_calls") if isinstance(delta, dict) else None
    listed = [each for each in calls if isinstance(each, dict)] if isinstance(calls, list) else []
    functions = [(each.get("index", i), each.get("function")) for i, each in enumerate(listed)]
    if isinstance(delta, dict):
        functions.append(("call", delta.get("function_call")))
    for number, function in functions:
        for key in texts_under(function, ("name", "arguments")):
            assert isinstance(function, dict)
            channel = (index, "tool", number, key)
            path = f"{at}.tool_calls[{number}].{key}"
            yield Slot(index, channel, function, key, path, quoted=key == "arguments")


class CompletionFormat(_ChoiceFormat):
    """`/v1/completions`."""

    def slots(self, event: dict[str, Any]) -> Sequence[Slot]:
        return [
            Slot(index, index, choice, "text", f"choices[{index}].text")
            for choice in _choices(event)
            for index in (_index(choice),)
            if isinstance(choice.get("text"), str)
        ]

    def cut(self, group: Group, verdict: Mapping[str, Any]) -> Iterator[bytes]:
        choice = {"index": group, "text": "", "logprobs": None, "finish_reason": "content_filter"}
        yield self._cut(choice, verdict)
