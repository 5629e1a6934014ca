"""Text that is held until it has been read."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from server.screening.streams.hold_back import HoldBackBuffer, Span

_SECRET = re.compile(r"a[bc]{1,6}a|dd")


def _spans(text: str) -> list[Span]:
    return [Span(m.start(), m.end(), "S") for m in _SECRET.finditer(text)]


def _whole(text: str) -> str:
    return _SECRET.sub("*", text)


def _streamed(pieces: list[str], hold_back: int, end: bool = True) -> tuple[list[str], list[str]]:
    """What leaves for each piece, and every window that was read."""
    held = HoldBackBuffer(hold_back, 40, lambda span, text: "*")
    out, windows = [], []

    def read(last: bool) -> None:
        for window in held.due(all=last):
            windows.append(window.text)
            held.seen(window, _spans(window.text))

    for piece in pieces:
        held.add(piece)
        read(False)
        out.append(held.take(held.free))
        assert held.length - held.left <= hold_back + held.stride
    if end:
        read(True)
        held.let_go()
        out.append(held.take(held.free))
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
    held = HoldBackBuffer(hold_back, 40, lambda span, text: "*")
    held.add(text)
    assert held.take(held.free) == ""
    for window in held.due():
        held.seen(window, [])
        assert held.free <= window.end


def test_a_span_whose_beginning_has_left_loses_the_rest() -> None:
    held = HoldBackBuffer(16, 16, lambda span, text: f"<{text}>")
    held.add("abcdef")
    for window in held.due(all=True):
        held.seen(window, [])
    held.let_go()
    assert held.take(6) == "abcdef"
    held.hold()
    held.add("ghij")
    for window in held.due(all=True):
        held.seen(window, [Span(4, 8, "S")])
    held.let_go()
    assert held.take(10) == "<gh>ij"


def test_what_is_kept_of_a_long_stream_is_bounded() -> None:
    held = HoldBackBuffer(200, 500, lambda span, text: "")
    for _ in range(5000):
        held.add("some words ")
        for window in held.due():
            held.seen(window, [])
        held.take(held.free)
        assert len(held._text) < 2000
    assert held.length == 55_000
