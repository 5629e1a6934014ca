"""Events that wait: in the order of their groups, whatever order is read first."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from server.screening.streams.event_queue import EventQueue, SlotText, WaitingEvent
from server.screening.streams.formats.base import place
from server.screening.streams.formats.choices import ChatFormat
from server.screening.streams.hold_back import HoldBackBuffer
from server.screening.streams.sse import BrokenStream
from server.wire.strict_json import encode_json
from tests.server.screening.streams.test_guard import _Guarded as Guarded


def _chunk(choices: list[dict[str, Any]]) -> bytes:
    return b"data: " + json.dumps({"choices": choices}).encode() + b"\n\n"


class _Buffer(HoldBackBuffer):
    """A buffer whose free part is set."""

    def __init__(self) -> None:
        super().__init__(16, 16, lambda span, text: text)
        self.position = 0

    @property
    def free(self) -> int:
        return self.position

    def take(self, end: int) -> str:
        self._sent = end
        return "x"


class _Case:
    """Events of some groups, each one character long; group 0 stands for events without."""

    def __init__(self) -> None:
        self.queue = EventQueue(ChatFormat(), dict, lambda verdicts, event: None, 2**20)
        self.buffers = {group: _Buffer() for group in range(1, 4)}
        self.lengths = dict.fromkeys(self.buffers, 0)
        self.waiting: list[tuple[int, int, bytes]] = []

    def put(self, number: int, group: int) -> None:
        choice = {"index": group, "delta": {"content": "x"}}
        raw = b"data: " + encode_json({"n": number, "choices": [choice]}) + b"\n\n"
        event = WaitingEvent(raw, groups=[group] if group else ())
        if group:
            self.lengths[group] += 1
            end = self.lengths[group]
            event.parts.append(SlotText(group, self.buffers[group], end, "x"))
        self.queue.put(event)
        self.waiting.append((group, self.lengths.get(group, 0), raw))

    def expected(self) -> bytes:
        """What may leave, by the rule itself: look at all that wait."""
        out, kept, held, has_barrier = b"", [], set(), False
        for group, end, raw in self.waiting:
            first = group not in held if group else not kept
            free = not group or end <= self.buffers[group].position
            if first and free and not has_barrier:
                out += raw
            else:
                kept.append((group, end, raw))
                held.add(group)
                has_barrier = has_barrier or not group
        self.waiting = kept
        return out


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.integers(0, 3)),
        st.tuples(st.just("free"), st.integers(1, 3)),
        st.tuples(st.just("drop"), st.integers(1, 3)),
    ),
    max_size=60,
)


@given(STEPS)
@example([("put", 1), ("put", 0), ("put", 2), ("free", 2), ("drop", 2)])
def test_what_leaves_is_what_the_rule_says(steps: Sequence[tuple[str, int]]) -> None:
    case = _Case()
    dropped = set()
    for number, (step, group) in enumerate(steps):
        if group in dropped:
            continue  # what comes of a group that has been cut is not put in
        if step == "put":
            case.put(number, group)
            assert case.queue.release_last() == case.expected()
        elif step == "free":
            buffer = case.buffers[group]
            buffer.position = min(buffer.position + 2, case.lengths[group])
            assert case.queue.release() == case.expected()
        else:
            # nothing of the first event that is dropped has come free
            case.buffers[group].position = case.buffers[group].sent
            case.queue.drop(group)
            dropped.add(group)
            case.waiting = [entry for entry in case.waiting if entry[0] != group]
            assert case.queue.release() == case.expected()
        assert bool(case.queue) == bool(case.waiting)


@pytest.mark.parametrize("index", ["x", [], {}, True, 1.5])
def test_a_choice_whose_index_is_no_number_breaks_the_stream(index: Any) -> None:
    choice = {"index": index, "delta": {"content": "hi"}, "finish_reason": None}
    with pytest.raises(BrokenStream, match="no number"):
        Guarded("redact", 20).run([_chunk([choice])])


@pytest.mark.parametrize("index", [[], {}, False, 0.5])
def test_a_call_whose_index_is_no_number_breaks_the_stream(index: Any) -> None:
    call = {"index": index, "function": {"arguments": "{}"}}
    choice = {"index": 0, "delta": {"tool_calls": [call]}, "finish_reason": None}
    with pytest.raises(BrokenStream, match="no number"):
        Guarded("redact", 20).run([_chunk([choice])])


def test_calls_without_an_index_stand_by_their_position() -> None:
    calls = [{"index": None, "function": {"arguments": "ab"}}, {"function": {"arguments": "a"}}]
    choice = {"index": None, "delta": {"tool_calls": calls}, "finish_reason": "stop"}
    out = Guarded("redact", 20).run([_chunk([choice])])
    assert b'"arguments":"ab"' in out.replace(b" ", b"")


def test_numbers_and_ids_are_places() -> None:
    assert [place(value) for value in (1, 2.0, "item", None)] == [1, 2, "item", None]


def test_a_stream_of_more_choices_than_anybody_asks_for_is_broken() -> None:
    events = [
        _chunk([{"index": number, "delta": {"content": "x"}, "finish_reason": None}])
        for number in range(300)
    ]
    with pytest.raises(BrokenStream, match="choices"):
        Guarded("redact", 20).run(events)
