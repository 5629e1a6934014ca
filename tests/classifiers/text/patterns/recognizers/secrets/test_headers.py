"""Tokens of an Authorization header."""

from __future__ import annotations

import pytest

from tests.classifiers.text.patterns.recognizers.tables import values

FOUND = [
    ("Authorization: Bearer a1B2c3d4e5F6g7H8i9", "a1B2c3d4e5F6g7H8i9"),
    ('-H "x-api-key: 9f8e7d6c5b4a39281706"', "9f8e7d6c5b4a39281706"),
]
NOT_FOUND = [
    "Authorization: Bearer $TOKEN",
    "bearer of internationalization",
    "Authorization: required",
]


@pytest.mark.parametrize(("text", "value"), FOUND)
def test_it_is_found_as_a_whole(text: str, value: str) -> None:
    assert values("secrets", "ACCESS_TOKEN", text) == [value]


@pytest.mark.parametrize("text", NOT_FOUND)
def test_what_resembles_it_is_left_alone(text: str) -> None:
    assert values("secrets", "ACCESS_TOKEN", text) == []
