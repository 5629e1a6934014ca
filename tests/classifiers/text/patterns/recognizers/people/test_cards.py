"""Payment cards of all brands and lengths."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stdnum import luhn

from classifiers.text.disguises.views import PLAIN, View
from classifiers.text.patterns.recognizers.people.cards import CARDS
from classifiers.text.patterns.scanning import Expressions
from tests.classifiers.text.patterns.recognizers.tables import values
from tests.processor_time import takes_less

FOUND = [
    ("Card#4111111111111111", "4111111111111111"),
    ("4111 1111 1111 1111 and 12 more", "4111 1111 1111 1111"),
    ("card number 30569309025904", "30569309025904"),
    ("amex 3782-822463-10005", "3782-822463-10005"),
    ("card number 6212345678900000003", "6212345678900000003"),
    ("pay with 4 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1", "4 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1"),
    ("Kartennummer: 6759649826438453", "6759649826438453"),
    ("カード番号 4111111111111111", "4111111111111111"),
]
NOT_FOUND = [
    "4111111111111112",
    "timestamps 1700000000123 and 1700000000123456789",
    "0000 0000 0000 0000",
    "part no. 4111-22-333",
    "v4111111111111111",
    "id 6ba7b810-9dad-11d1-80b4-00c04fd430c8",
    "ratio 0.4111111111111111",
]


@pytest.mark.parametrize(("text", "value"), FOUND)
def test_it_is_found_as_a_whole(text: str, value: str) -> None:
    assert values("personal-data", "CREDIT_CARD", text) == [value]


@pytest.mark.parametrize("text", NOT_FOUND)
def test_what_resembles_it_is_left_alone(text: str) -> None:
    assert values("personal-data", "CREDIT_CARD", text) == []


@settings(max_examples=30)
@given(st.from_regex(r"[1-9][0-9]{11,18}", fullmatch=True), st.booleans())
def test_behind_a_label_the_check_digit_decides(digits: str, is_made_valid: bool) -> None:
    if is_made_valid:
        digits = digits[:-1] + luhn.calc_check_digit(digits[:-1])
    expected = [digits] if luhn.is_valid(digits) and len(set(digits)) > 1 else []
    assert values("personal-data", "CREDIT_CARD", f"card {digits}") == expected


@pytest.mark.parametrize("unit", ["4 1 2 ", "8 7 1 "])
def test_a_row_of_single_digits_is_read_in_little_time(unit: str) -> None:
    view = View(PLAIN, unit * 5_000, lambda start, end: (start, end))
    cards = Expressions([CARDS], raw=False)
    assert not list(cards.findings(view))
    assert takes_less(lambda: list(cards.findings(view)), 1.2)  # of 30 kB
