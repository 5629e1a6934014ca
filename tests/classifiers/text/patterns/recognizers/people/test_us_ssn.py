"""Social security numbers, apart and stuck to words."""

from __future__ import annotations

import pytest

from tests.classifiers.text.patterns.recognizers.tables import values

FOUND = [
    ("SSN#078-05-1120", "078-05-1120"),
    ("SSN: 078-05-1120Date of hire", "078-05-1120"),
    ("SSN 078.05.1120", "078.05.1120"),
    ("ssn 536904399", "536904399"),
    ("it is 536-90-4399.", "536-90-4399"),
]
NOT_FOUND = [
    "ticket #123-45-6789",
    "invoice 2024-000123-45",
    "000-12-3456",
    "666-12-3456",
    "536-00-4399",
    "in 536904399 bytes",
    "version 078.05.1120",
]


@pytest.mark.parametrize(("text", "value"), FOUND)
def test_it_is_found_as_a_whole(text: str, value: str) -> None:
    assert values("personal-data", "US_SSN", text) == [value]


@pytest.mark.parametrize("text", NOT_FOUND)
def test_what_resembles_it_is_left_alone(text: str) -> None:
    assert values("personal-data", "US_SSN", text) == []
