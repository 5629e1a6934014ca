"""The origin of the characters of a rewritten text, against a plain reference."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from classifiers.text.disguises.rewriting import Replacement, Rewritten


@st.composite
def rewritings(draw: st.DrawFn) -> tuple[str, list[Replacement]]:
    source = draw(st.text("abc", min_size=1, max_size=30))
    cuts = sorted(draw(st.sets(st.integers(0, len(source)), max_size=8)))
    edits = []
    for start, end in zip(cuts[::2], cuts[1::2], strict=False):
        kind = draw(st.sampled_from(["run", "same", "reversed", "shuffled", "every other"]))
        text: str = draw(st.text("xyz", min_size=1, max_size=4))
        at = {
            "run": None,
            "same": range(start, end),
            "reversed": range(end - 1, start - 1, -1),
            "shuffled": draw(st.permutations(range(start, end))),
            "every other": range(start, end, 2),
        }[kind]
        edits.append(Replacement(start, end, text if at is None else "x" * len(at), at))
    return source, edits


@given(rewritings(), st.data())
def test_a_span_is_the_shortest_stretch_that_holds_all_its_characters(
    rewriting: tuple[str, list[Replacement]], data: st.DataObject
) -> None:
    source, edits = rewriting
    text, origins, done = "", [], 0
    for edit in [*edits, Replacement(len(source), len(source), "")]:
        between = range(done, edit.start)
        text += source[done : edit.start] + edit.text
        origins += [(place, place + 1) for place in between]
        whole = [(edit.start, edit.end)] * len(edit.text)
        origins += whole if edit.at is None else [(place, place + 1) for place in edit.at]
        done = edit.end
    rewritten = Rewritten(source, edits)
    assert rewritten.text == text
    if text:
        start = data.draw(st.integers(0, len(text) - 1))
        end = data.draw(st.integers(start + 1, len(text)))
        inside = origins[start:end]
        expected = min(first for first, _ in inside), max(last for _, last in inside)
        assert rewritten.span(start, end) == expected
