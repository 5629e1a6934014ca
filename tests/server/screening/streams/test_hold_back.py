"""Text that is held until it has been read."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from server.screening.spans import Span
from server.screening.streams.hold_back import HoldBackBuffer

_SECRET = re.compile(r"a[bc]{1,6}a|dd")


def _spans(text: str) -> list[Span]:
    return [Span(m.start(), m.end(), "S") for m in _SECRET.finditer(text)]


def _whole(text: str) -> str:
    return _SECRET.sub("*", text)


def _streamed(pieces: list[str], hold_back: int, end: bool = True) -> tuple[list[str], list[str]]:
    """What leaves for each piece, and every window that was read."""
    buffer = HoldBackBuffer(hold_back, 40, lambda span, text: "*")
    out, windows = [], []

    def read(is_last: bool) -> None:
        for window in buffer.due_windows(all=is_last):
            windows.append(window.text)
            buffer.mark_read(window, _spans(window.text))

    for piece in pieces:
        buffer.add(piece)
        read(False)
        out.append(buffer.take(buffer.free))
        assert buffer.length - buffer.sent <= hold_back + buffer.stride
    if end:
        read(True)
        buffer.release()
        out.append(buffer.take(buffer.free))
    return out, windows


@given(st.text("abcd", max_size=200), st.data(), st.integers(16, 64))
def test_what_leaves_and_what_is_read_do_not_depend_on_the_chunks(
    text: str, data: st.DataObject, hold_back: int
) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=20)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    at_once, windows = _streamed([text], hold_back)
    out, read = _streamed(pieces, hold_back)
    assert "".join(out) == "".join(at_once) == _whole(text)
    assert read == windows


@given(st.text("abcd", max_size=120), st.integers(16, 64))
def test_nothing_leaves_that_has_not_been_read(text: str, hold_back: int) -> None:
    buffer = HoldBackBuffer(hold_back, 40, lambda span, text: "*")
    buffer.add(text)
    assert buffer.take(buffer.free) == ""
    for window in buffer.due_windows():
        buffer.mark_read(window, [])
        assert buffer.free <= window.end


def test_a_span_whose_beginning_has_left_loses_the_rest() -> None:
    buffer = HoldBackBuffer(16, 16, lambda span, text: f"<{text}>")
    buffer.add("abcdef")
    for window in buffer.due_windows(all=True):
        buffer.mark_read(window, [])
    buffer.release()
    assert buffer.take(6) == "abcdef"
    buffer.hold()
    buffer.add("ghij")
    for window in buffer.due_windows(all=True):
        buffer.mark_read(window, [Span(4, 8, "S")])
    buffer.release()
    assert buffer.take(10) == "<gh>ij"


def test_what_is_kept_of_a_long_stream_is_bounded() -> None:
    buffer = HoldBackBuffer(200, 500, lambda span, text: "")
    for _ in range(5000):
        buffer.add("some words ")
        for window in buffer.due_windows():
            buffer.mark_read(window, [])
        buffer.take(buffer.free)
        assert len(buffer._text) < 2000
    assert buffer.length == 55_000
