"""A whole answer that a screen blocks: it is answered, and ends as the API's content filter does.

Streams end in the same way: see `cut_events` of their formats.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from server.screening.bodies.texts import JsonText

_CHOICE = re.compile(r"choices\[(\d+)\]")
_HEADS: Mapping[str, Mapping[str, Any]] = {
    "chat": {"id": "cut", "object": "chat.completion", "created": 0, "model": ""},
    "completions": {"id": "cut", "object": "text_completion", "created": 0, "model": ""},
    "responses": {"id": "cut", "object": "response", "created_at": 0, "model": ""},
    "messages": {"id": "cut", "type": "message", "role": "assistant", "model": ""},
}
"""By the name of the route: what stands for members that are blocked themselves."""


def choice_of(piece: JsonText) -> int | None:
    """The position of the choice that a text is in; None for one outside of all choices."""
    match = _CHOICE.match(piece.path)
    return int(match[1]) if match else None


def blocked_choices(value: Any, blocked: Collection[JsonText]) -> set[int]:
    """The positions of the choices that are blocked: all where a text outside of them is."""
    places = {choice_of(piece) for piece in blocked}
    if None in places:
        choices = value.get("choices") if isinstance(value, dict) else None
        return set(range(len(choices))) if isinstance(choices, list) else set()
    return {place for place in places if place is not None}


def block_answer(
    route: str, value: Any, blocked: Sequence[JsonText], message: str | None
) -> dict[str, Any] | None:
    """The answer without what is `blocked`; of several choices only those with such a text end.

    `message` stands in its place. None where the API of `route` has no such end.
    """
    if route not in _HEADS or not isinstance(value, dict):
        return None
    ends = {"chat": "choices", "completions": "choices", "responses": "output"}.get(
        route, "content"
    )
    if not isinstance(value.get(ends), list):
        return None
    if ends == "choices":
        for place in blocked_choices(value, blocked):
            if not isinstance(choice := value["choices"][place], dict):
                return None
            _block_choice(route, choice, place, message)
        end: dict[str, Any] = {}
    elif ends == "output":
        end = {
            "status": "incomplete",
            "incomplete_details": {"reason": "content_filter"},
            "output": [_message_item(message)] if message is not None else [],
        }
    else:
        content = [{"type": "text", "text": message}] if message is not None else []
        end = {"content": content, "stop_reason": "refusal", "stop_sequence": None}
    gone = {re.split(r"[.\[]", piece.path, maxsplit=1)[0] for piece in blocked} | {"output_text"}
    kept = {name: item for name, item in value.items() if name not in gone - {ends}}
    return {**_HEADS[route], **kept, **end}


def _block_choice(route: str, choice: dict[str, Any], place: int, message: str | None) -> None:
    index = choice.get("index")
    text = message or ""
    if route == "chat":
        answer: dict[str, Any] = {
            "message": {"role": "assistant", "content": text, "refusal": None},
        }
    else:
        answer = {"text": text}
    choice.clear()
    choice["index"] = index if isinstance(index, int) else place
    choice.update(answer, logprobs=None, finish_reason="content_filter")


def _message_item(message: str) -> dict[str, Any]:
    part = {"type": "output_text", "text": message, "annotations": []}
    return {
        "id": "msg_cut",
        "type": "message",
        "role": "assistant",
        "status": "incomplete",
        "content": [part],
    }
