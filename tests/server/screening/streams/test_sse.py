"""Events out of chunks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.screening.streams.sse import BrokenStream, EventReader, SentEvent


def _read(chunks: list[bytes]) -> list[SentEvent]:
    reader = EventReader(1000)
    return [event for chunk in chunks for event in reader.feed(chunk)] + list(reader.rest())


LINES = st.sampled_from(
    ["data: a", "data:b", "event: x", ": hello", "id: 1", "data", "data: \u00e9"]
)
ENDS = st.sampled_from(["\n", "\r\n", "\r"])


@given(st.lists(st.lists(LINES, min_size=1, max_size=3), max_size=5), ENDS, st.data())
def test_what_is_read_does_not_depend_on_the_chunks(
    events: list[list[str]], end: str, data: st.DataObject
) -> None:
    whole = "".join("".join(line + end for line in event) + end for event in events).encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=12)))
    chunks = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    read = _read(chunks)
    assert [(e.name, e.data) for e in read] == [(e.name, e.data) for e in _read([whole])]
    assert len(read) == len(events)
    assert not any(b"id: 1" in e.raw or b": hello" in e.raw for e in read if e.data)


def test_lines_of_data_are_one_text() -> None:
    (event,) = _read([b"event: e\ndata: a\ndata: b\n\n"])
    assert (event.name, event.data) == ("e", "a\nb")


def test_a_comment_has_no_data() -> None:
    assert [event.data for event in _read([b": ping\n\ndata: x\n\n"])] == [None, "x"]


def test_what_nobody_closed_is_an_event_at_the_end() -> None:
    assert [event.data for event in _read([b"data: x"])] == ["x"]


@pytest.mark.parametrize("chunk", [b"x" * 1001, b"data: \xff\n\n"])
def test_what_cannot_be_read(chunk: bytes) -> None:
    with pytest.raises(BrokenStream):
        list(EventReader(1000).feed(chunk))
