"""Long texts in parts."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from classifiers.text.entities.chunks import OVERLAP, SIZE, chunks_of

WORDS = st.lists(st.text("abc é(", min_size=1, max_size=300), max_size=40).map(" ".join)


@settings(max_examples=50, deadline=None)
@given(text=WORDS)
def test_chunks_cover_a_text_and_overlap(text: str) -> None:
    chunks = list(chunks_of(text))
    assert chunks[0].start == 0 and chunks[-1].start + len(chunks[-1].text) == len(text)
    for chunk in chunks:
        assert text[chunk.start : chunk.start + len(chunk.text)] == chunk.text
        assert len(chunk.text) <= SIZE
    for before, after in zip(chunks, chunks[1:], strict=False):
        assert before.start < after.start < before.start + len(before.text)


def test_every_short_name_is_whole_in_a_chunk() -> None:
    text = "word " * 700
    chunks = list(chunks_of(text))
    for start in range(len(text) - 50):
        assert any(c.start <= start and start + 50 <= c.start + len(c.text) for c in chunks)


@pytest.mark.parametrize("text", ["x" * 100_000, "ab " * 33_333, "\n" * 100_000])
def test_the_chunks_of_a_text_are_not_much_longer_than_it(text: str) -> None:
    read = sum(len(chunk.text) for chunk in chunks_of(text))
    assert read <= len(text) * SIZE / (SIZE - 2 * OVERLAP) + SIZE
