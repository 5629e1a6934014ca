"""A stream of `/v1/responses` that is cut ends with what has left, however it came."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.screening.streams.formats import delivered
from server.screening.streams.formats.base import StreamOptions
from server.screening.streams.formats.delivered import DeliveredOutput, Mark
from server.screening.streams.formats.responses import ResponsesFormat
from tests.server.proxy.answers.api_streams import events_of, response_events
from tests.server.screening.streams.test_guard import CUTS, TEXTS, _cut, _Guarded


def _left(out: bytes) -> tuple[str, dict[str, Any], list[int]]:
    """The text of the deltas, the last event, and all numbers."""
    events = [event for _, event in events_of(out.decode())]
    deltas = [e["delta"] for e in events if e["type"] == "response.output_text.delta"]
    return "".join(deltas), events[-1], [event["sequence_number"] for event in events]


@settings(deadline=None, max_examples=60)
@given(TEXTS, CUTS, st.sampled_from([16, 40]), st.sampled_from([None, "No."]))
def test_the_last_event_has_the_text_that_has_left(
    text: str, cuts: list[int], hold_back: int, message: str | None
) -> None:
    stream_format = ResponsesFormat(StreamOptions(message=message))
    guarded = _Guarded("block", hold_back, stream_format=stream_format)
    text += " dd"  # which is blocked
    left, last, numbers = _left(guarded.run(response_events(_cut(text, cuts))))
    assert last["type"] == "response.incomplete"
    texts = [part["text"] for item in last["response"]["output"] for part in item["content"]]
    assert "".join(texts) == left
    assert text.startswith(left.removesuffix(message or ""))
    assert numbers == sorted(set(numbers))


def test_nothing_of_an_object_that_is_blocked_has_left() -> None:
    texts = ['{"name": "Eve", "note": "', "z" * 80, ' dd", "x": 1}']
    for harmful in (True, False):
        stream_format = ResponsesFormat(StreamOptions(has_form=True))
        guarded = _Guarded("block", 16, stream_format=stream_format)
        chunks = response_events(texts if harmful else [*texts[:2], '"}'])
        left, last, _ = _left(guarded.run(chunks))
        assert last["type"] == ("response.incomplete" if harmful else "response.completed")
        assert left == ("" if harmful else "".join(texts[:2]) + '"}')


def _events(kinds: Sequence[dict[str, Any]]) -> list[bytes]:
    started = {"type": "response.created", "response": {"id": "r", "output": []}}
    return [
        f"data: {json.dumps({**event, 'sequence_number': number})}\n\n".encode()
        for number, event in enumerate([started, *kinds])
    ]


def test_items_that_were_done_stay_and_half_a_call_is_not_closed() -> None:
    reasoning = {"id": "rs", "type": "reasoning", "summary": [], "status": "completed"}
    call = {"id": "fc", "type": "function_call", "name": "f", "call_id": "c", "arguments": ""}
    arguments = {"type": "response.function_call_arguments.delta", "item_id": "fc"}
    kinds = [
        {"type": "response.output_item.added", "output_index": 0, "item": reasoning},
        {"type": "response.output_item.done", "output_index": 0, "item": reasoning},
        {
            "type": "response.output_item.added",
            "output_index": 1,
            "item": {**call, "status": "in_progress"},
        },
        {**arguments, "output_index": 1, "delta": '{"x": "' + "y" * 60},
        {**arguments, "output_index": 1, "delta": " dd"},
    ]
    guarded = _Guarded("block", 16, stream_format=ResponsesFormat())
    events = [event for _, event in events_of(guarded.run(_events(kinds)).decode())]
    names = [event["type"] for event in events]
    assert names.count("response.output_item.done") == 1
    assert names[-1] == "response.incomplete"
    first, second = events[-1]["response"]["output"]
    left = "".join(e["delta"] for e in events if e["type"].endswith("arguments.delta"))
    assert first == reasoning
    assert second == {**call, "status": "incomplete", "arguments": left}
    assert left.startswith('{"x": "y')


def test_deltas_of_an_item_that_was_not_announced() -> None:
    delta = {"type": "response.output_text.delta", "item_id": "i", "delta": "z" * 60}
    bad = {**delta, "delta": " dd"}
    out = _Guarded("block", 16, stream_format=ResponsesFormat()).run(_events([delta, bad]))
    left, last, _ = _left(out)
    (item,) = last["response"]["output"]
    assert item["id"] == "i" and item["content"][0]["text"] == left != ""


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivered, "MAX_CHARS", 10)
    monkeypatch.setattr(delivered, "MAX_ITEMS", 3)
    output = DeliveredOutput()
    for index in range(9):
        event = {"type": "response.output_text.delta", "output_index": index}
        mark = Mark.of(event)
        assert mark is not None
        output.add(mark, ["four"])
    assert len(output.output()) <= 3
    assert sum(len(str(part["text"])) for item in output.output() for part in item["content"]) <= 10
