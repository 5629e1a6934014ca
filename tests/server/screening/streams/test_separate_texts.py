"""Texts of a stream that do not go on with each other are not read as one."""

from __future__ import annotations

from typing import Any

import pytest

from server.screening.streams.formats.base import StreamFormat
from server.screening.streams.formats.choices import ChatFormat, CompletionFormat
from server.screening.streams.formats.messages import MessagesFormat


def chunk(**delta: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta}]}


def channels(stream_format: StreamFormat, event: dict[str, Any]) -> dict[str, Any]:
    return {slot.text: slot.channel for slot in stream_format.slots(event)}


def test_calls_of_custom_tools_go_on_by_their_index() -> None:
    def call(index: int, text: str) -> dict[str, Any]:
        return {"index": index, "custom": {"input": text}, "extra": {"note": f"of {text}"}}

    first = channels(ChatFormat(), chunk(tool_calls=[call(0, "a"), call(1, "b")]))
    assert len(set(first.values())) == len(first) == 4
    then = channels(ChatFormat(), chunk(tool_calls=[call(1, "b")]))
    assert then == {text: first[text] for text in ("b", "of b")}


@pytest.mark.parametrize(
    "delta",
    [
        {"annotations": [{"url_citation": {"title": "a b"}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": {"to": "a b"}}}]},
    ],
)
def test_what_a_chunk_has_as_a_whole_adds_to_nothing(delta: Any) -> None:
    assert not channels(ChatFormat(), chunk(**delta))


def test_a_block_that_starts_with_its_input_and_citations_add_to_nothing() -> None:
    block = {"type": "tool_use", "input": {"to": "a b"}, "name": "f"}
    start = {"type": "content_block_start", "index": 0, "content_block": block}
    assert not channels(MessagesFormat(), start)
    delta = {"type": "citations_delta", "citation": {"cited_text": "a b"}}
    event = {"type": "content_block_delta", "index": 0, "delta": delta}
    assert not channels(MessagesFormat(), event)


def test_deltas_of_unknown_kinds_go_on_in_their_own_block() -> None:
    def at(index: int) -> Any:
        delta = {"type": "x_delta", "note": "a b"}
        event = {"type": "content_block_delta", "index": index, "delta": delta}
        return channels(MessagesFormat(), event)["a b"]

    assert at(0) == at(0) != at(1)


def test_thoughts_of_completions_go_on() -> None:
    def at(text: str) -> Any:
        event = {"choices": [{"index": 1, "text": "", "reasoning_content": text}]}
        return channels(CompletionFormat(), event)[text]

    assert at("a") == at("b")


@pytest.mark.parametrize(
    ("listed", "name"), [("reasoning_details", "text"), ("thinking_blocks", "thinking")]
)
def test_signed_thoughts_of_chats_are_known(listed: str, name: str) -> None:
    def thought(text: str, signature: str) -> dict[str, Any]:
        return {"delta": {listed: [{name: text, "signature": signature}]}, "index": 2}

    stream_format = ChatFormat()
    (slot,) = stream_format.slots({"choices": [thought("a", "")]})
    assert slot.is_signed
    assert stream_format.signed_channel({"choices": [thought("a", "")]}) is None
    assert stream_format.signed_channel({"choices": [thought("", "S")]}) == slot.channel
