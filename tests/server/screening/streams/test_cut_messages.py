"""A stream of `/v1/messages` that is cut in a call of a tool gives no client a call to run."""

from __future__ import annotations

import json
from typing import Any

import pytest

from server.screening.streams.formats.base import StreamOptions
from server.screening.streams.formats.messages import MessagesFormat
from tests.server.proxy.answers.api_streams import events_of
from tests.server.screening.streams.test_guard import _Guarded


def _cut(block: dict[str, Any], delta: dict[str, Any], key: str) -> list[dict[str, Any]]:
    """The events of a stream that is cut in its second block."""
    message = {"id": "m", "type": "message", "role": "assistant", "content": []}
    text = {"type": "text", "text": ""}
    start, more = "content_block_start", "content_block_delta"
    sent: list[dict[str, Any]] = [
        {"type": "message_start", "message": message},
        {"type": start, "index": 0, "content_block": text},
        {"type": more, "index": 0, "delta": {"type": "text_delta", "text": "I look."}},
        {"type": "content_block_stop", "index": 0},
        {"type": start, "index": 1, "content_block": block},
        {"type": more, "index": 1, "delta": {**delta, key: '{"x": "' + "y" * 60}},
        {"type": more, "index": 1, "delta": {**delta, key: " dd"}},
    ]
    guarded = _Guarded("block", 16, stream_format=MessagesFormat(StreamOptions(message="No.")))
    out = guarded.run([f"data: {json.dumps(event)}\n\n".encode() for event in sent])
    return [event for _, event in events_of(out.decode())]


@pytest.mark.parametrize("kind", ["tool_use", "server_tool_use", "mcp_tool_use"])
def test_half_a_call_ends_with_an_error(kind: str) -> None:
    """Anthropic's SDK takes all blocks of a message that ends for whole, closed or not."""
    block = {"type": kind, "id": "t", "name": "f", "input": {}}
    events = _cut(block, {"type": "input_json_delta"}, "partial_json")
    assert [e["index"] for e in events if e["type"] == "content_block_start"] == [0, 1]
    assert [e["index"] for e in events if e["type"] == "content_block_stop"] == [0]
    assert not {"message_delta", "message_stop"} & {event["type"] for event in events}
    last = events[-1]
    assert last["type"] == "error" and last["guard"] == {"outcome": "blocked"}
    assert (last["error"]["message"], last["error"]["code"]) == ("No.", "content_filter")


def test_nothing_of_an_object_that_is_blocked_has_left() -> None:
    more = {"type": "content_block_delta", "index": 0}
    sent: list[dict[str, Any]] = [
        {"type": "message_start", "message": {"id": "m", "type": "message", "content": []}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {**more, "delta": {"type": "text_delta", "text": '{"x": "' + "y" * 60}},
        {**more, "delta": {"type": "text_delta", "text": ' dd"}'}},
    ]
    guarded = _Guarded("block", 16, stream_format=MessagesFormat(StreamOptions(has_form=True)))
    out = guarded.run([f"data: {json.dumps(event)}\n\n".encode() for event in sent])
    events = [event for _, event in events_of(out.decode())]
    assert b"yyy" not in out
    assert events[-2]["delta"]["stop_reason"] == "refusal"


def test_half_a_thought_ends_as_a_refusal() -> None:
    block = {"type": "thinking", "thinking": "", "signature": ""}
    events = _cut(block, {"type": "thinking_delta"}, "thinking")
    assert [e["index"] for e in events if e["type"] == "content_block_stop"] == [0, 1, 2]
    assert [event["type"] for event in events[-2:]] == ["message_delta", "message_stop"]
    assert events[-2]["delta"]["stop_reason"] == "refusal"
