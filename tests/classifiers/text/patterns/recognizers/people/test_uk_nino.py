"""National insurance numbers."""

from __future__ import annotations

import pytest

from tests.classifiers.text.patterns.recognizers.tables import values

FOUND = [
    ("AB 12 34 56 C", "AB 12 34 56 C"),
    ("ni number: ab123456c", "ab123456c"),
    ("it is JK123456D.", "JK123456D"),
]
NOT_FOUND = [
    "digest ab123456c",
    "GB 12 34 56 C",
    "AB 12 34 56 E",
    "AB1234567C",
]


@pytest.mark.parametrize(("text", "value"), FOUND)
def test_it_is_found_as_a_whole(text: str, value: str) -> None:
    assert values("personal-data", "UK_NINO", text) == [value]


@pytest.mark.parametrize("text", NOT_FOUND)
def test_what_resembles_it_is_left_alone(text: str) -> None:
    assert values("personal-data", "UK_NINO", text) == []
