"""Placeholders."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from server.screening.streams.hold_back import Span
from server.screening.texts.redaction import Placeholders

_NAME = re.compile("[ab]{2,4}")
TEXTS = st.text(alphabet='ab [NAME_1]"\\\u00e9', max_size=60)


def _spans(text: str) -> list[Span]:
    return [Span(match.start(), match.end(), "NAME") for match in _NAME.finditer(text)]


def _restored(placeholders: Placeholders, text: str) -> str:
    return placeholders.redact(text, placeholders.find(text))


@given(st.lists(TEXTS, max_size=4))
def test_redaction_and_restoration_are_inverse(texts: list[str]) -> None:
    placeholders = Placeholders(texts)
    redacted = [placeholders.redact(text, _spans(text)) for text in texts]
    assert not any(_NAME.search(text) for text in redacted)
    placeholders.seal()
    assert [_restored(placeholders, text) for text in redacted] == texts


@given(st.lists(TEXTS, max_size=4))
def test_the_same_text_has_the_same_placeholder_and_others_another(texts: list[str]) -> None:
    placeholders = Placeholders(texts)
    names = [match[0] for text in texts for match in _NAME.finditer(text)]
    assigned = [placeholders.placeholder_for("NAME", name) for name in names]
    assert len(set(assigned)) == len(set(names))
    assert dict(zip(assigned, names, strict=True)) == {
        placeholders.placeholder_for("NAME", name): name for name in names
    }
    assert not any(name in text for name in assigned for text in texts)


def test_those_of_the_request_are_found_in_its_answer_and_no_others() -> None:
    placeholders = Placeholders(["a"])
    placeholder = placeholders.placeholder_for("NAME", "joe")
    placeholders.seal()
    later = placeholders.placeholder_for("NAME", "ann")
    text = f"to {placeholder} and {later} and [NAME_7]"
    assert placeholders.find(text) == [Span(3, 3 + len(placeholder), placeholder)]
