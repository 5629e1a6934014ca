"""Placeholders."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.screening.spans import Span
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


@pytest.mark.parametrize(
    "spelled",
    [
        "[EMAIL_1]", "\\[EMAIL\\_1\\]", "\\[EMAIL_1\\]", "%5BEMAIL_1%5D", "%5bEMAIL%5f1%5d",
        "&#91;EMAIL_1&#93;", "[email_1]", "[EMAIL 1]", "[Email-1]", "EMAIL_1", "EMAIL\\_1",
    ],
)  # fmt: skip
def test_a_placeholder_is_known_in_other_spellings(spelled: str) -> None:
    placeholders = Placeholders(())
    for index in range(10):
        placeholders.placeholder_for("EMAIL", f"joe{index}@example.org")
    placeholders.seal()
    for before, after in (("", ""), ("to <", ">, or"), ("](mailto:", ")")):
        text = before + spelled + after
        assert _restored(placeholders, text) == f"{before}joe0@example.org{after}"
        for size in range(1, len(spelled)):
            start = before + spelled[:size]
            is_whole = spelled.startswith("EMAIL") and size == len(spelled)
            assert is_whole or placeholders.partial_length(start) >= size, start


@pytest.mark.parametrize("text", ["[EMAIL_10]", "[EMAIL_1", "XEMAIL_1", "EMAIL_12", "[EMAIL__1]"])
def test_what_is_no_spelling_of_it(text: str) -> None:
    placeholders = Placeholders(())
    placeholders.placeholder_for("EMAIL", "joe@example.org")
    placeholders.seal()
    assert _restored(placeholders, text) == text


def test_an_original_goes_into_an_address_as_one() -> None:
    placeholders = Placeholders(())
    placeholders.placeholder_for("NAME", "Ann Lee?")
    placeholders.seal()
    assert _restored(placeholders, "/u/%5BNAME_1%5D") == "/u/Ann%20Lee%3F"


def test_placeholders_of_a_continued_conversation_are_no_other_texts() -> None:
    first, second, third = (Placeholders((), is_continued=i > 0) for i in range(3))
    alice = [p.placeholder_for("EMAIL", "alice@example.com") for p in (first, second, third)]
    bob = [p.placeholder_for("EMAIL", "bob@example.org") for p in (first, second, third)]
    assert alice[1] == alice[2] and bob[1] == bob[2]
    assert len({*alice, *bob}) == 4


def test_a_number_is_restored_as_one() -> None:
    placeholders = Placeholders(())
    number = placeholders.placeholder_for("CARD", "4111", is_number=True)
    text = placeholders.placeholder_for("CARD", "4111")
    placeholders.seal()
    assert placeholders.number(number) == "4111"
    assert placeholders.number(text) is None


@pytest.mark.parametrize(
    "text",
    ["EMAIL_1", "xEMAIL_1x", "9EMAIL_1", "_EMAIL_1_x", "EMAIL_1ABC", "[EMAIL_1", "a EMAIL_1"],
)
def test_a_number_that_a_text_of_the_request_has_is_taken(text: str) -> None:
    assert Placeholders([text]).placeholder_for("EMAIL", "ann@example.com") == "[EMAIL_2]"
