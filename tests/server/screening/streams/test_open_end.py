"""Text that cannot be part of a match any more leaves at once."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from classifiers.text.patterns.matching import PatternSet, shipped
from server.screening.spans import Span
from server.screening.streams.hold_back import HoldBackBuffer
from server.screening.streams.open_end import OpenText
from server.screening.texts.redaction import Placeholders

LISTS = PatternSet.joined([shipped("secrets"), shipped("personal-data")])
PARTS = (
    "ann@example.com", "4111 1111 1111 1111", "+49 30 123456", "078-05-1120", "hello", "world.",
    "DE89 3704 0044 0532 0130 00", "password: Xk9!qw3z7Lp", "AKIAABCDEFGH23456723",
    "dob 1990-04-12",
    "\n", r"\n", " ", ",", "a", "%41%6e", "\u00e9", "me at joe [at] example [dot] com", "12", "-",
)  # fmt: skip
PROSE = "The quick brown fox jumps over the lazy dog and goes home to sleep."
TEXTS = st.lists(st.sampled_from(PARTS), max_size=14).map(" ".join) | st.lists(
    st.sampled_from(PARTS), max_size=8
).map("".join)


def _streamed(pieces: list[str], placeholders: Placeholders | None = None) -> list[str]:
    open_text = OpenText(LISTS, placeholders, 4096)
    buffer = HoldBackBuffer(200, 4096, lambda span, text: f"<{span.label}>", open_text=open_text)
    out = []
    for piece in [*pieces, ""]:
        buffer.add(piece)
        for window in buffer.due_windows(all=piece == ""):
            found = LISTS.find(window.reading)
            window.mark_read([Span(match.start, match.end, match.label) for match in found])
        if not piece:
            buffer.release()
        out.append(buffer.take(buffer.free))
    return out


def _redacted(text: str) -> str:
    for match in reversed(LISTS.find(text)):
        text = f"{text[: match.start]}<{match.label}>{text[match.end :]}"
    return text


@settings(deadline=None)
@given(TEXTS, st.data())
def test_a_stream_is_redacted_as_its_text_is(text: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=12)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True) if a < b]
    assert "".join(_streamed(pieces)) == _redacted(text)


def test_prose_leaves_at_once_but_for_its_last_words() -> None:
    words = PROSE.split() * 9
    sent = held = 0
    for word, out in zip(words, _streamed([f"{word} " for word in words]), strict=False):
        sent += len(word) + 1
        held = max(held, sent - len(out))
        sent -= len(out)
    assert held < 40


def test_half_a_placeholder_stays() -> None:
    placeholders = Placeholders(())
    placeholders.placeholder_for("EMAIL", "ann@example.com")
    placeholders.seal()
    out = _streamed(["Write to the [EMAIL", "_1] of"], placeholders)
    assert out[0].startswith("Write to") and "[" not in out[0]


def test_a_code_that_goes_on_is_not_held_for_ever() -> None:
    out = _streamed(["aGVsbG8gd29ybGQg" * 20] * 40)
    assert sum(map(len, out[:-1])) > 320 * 40 - 4096 - 320
