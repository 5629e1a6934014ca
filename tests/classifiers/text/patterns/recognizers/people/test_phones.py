"""Telephone numbers by the numbering plans of all countries."""

from __future__ import annotations

import pytest

from tests.classifiers.text.patterns.recognizers.tables import values

FOUND = [
    ("415-555-2671x12", "415-555-2671x12"),
    ("Tel.+14155552671", "+14155552671"),
    ("+49 (0)30 12345678, or", "+49 (0)30 12345678"),
    ("ring 0044 20 7946 0018", "0044 20 7946 0018"),
    ("(212) 555-0123", "(212) 555-0123"),
    ("Telefon: 030 1234567", "030 1234567"),
    ("téléphone 01 23 45 67 89", "01 23 45 67 89"),
    ('"phone_number": "9876543210"', "9876543210"),
    ("电话：13912345678", "13912345678"),
    ("we are at 030/1234567 now", "030/1234567"),
    ("Fax 8 (812) 865-70-70", "8 (812) 865-70-70"),
    ("+55 11 91234-5678", "+55 11 91234-5678"),
    ("Tel. 1747731000", "1747731000"),
    ("My phone number is 2065550123.", "2065550123"),
]
NOT_FOUND = [
    "schedule --channel '#csm-signals' --post-at 1747731000",
    "cell A1 has 1747731000",
    "an enum of 360 480 720 1080",
    "256 512 1024",
    "ORDER-234-567-8901",
    "timestamp 1700000000",
    "pages 200-300 of (2018) 123-4567",
    "call on 2024-01-05",
    "sg-004915970c4c8f13a",
    "+1234567 lines",
    "size 1024x768",
]


@pytest.mark.parametrize(("text", "value"), FOUND)
def test_it_is_found_as_a_whole(text: str, value: str) -> None:
    assert values("personal-data", "PHONE", text) == [value]


@pytest.mark.parametrize("text", NOT_FOUND)
def test_what_resembles_it_is_left_alone(text: str) -> None:
    assert values("personal-data", "PHONE", text) == []
