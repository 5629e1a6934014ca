"""Dates behind a word of birth."""

from __future__ import annotations

import pytest

from tests.classifiers.text.patterns.recognizers.tables import values

FOUND = [
    ("dob: 1990-04-12", "1990-04-12"),
    ("born on 12 March 1970 in", "12 March 1970"),
    ("geboren am 12.03.1970", "12.03.1970"),
    ("née le 12/03/1970", "12/03/1970"),
    ('"date_of_birth": "April 12, 1990"', "April 12, 1990"),
    ("出生日期：1990年4月12日", "1990年4月12日"),
    ("fecha de nacimiento: 12 de abril de 1990", "12 de abril de 1990"),
    ("дата рождения: 12.04.1990", "12.04.1990"),
]
NOT_FOUND = [
    "on 12 March 1970",
    "Alice was born on a Monday",
    "date of birth is asked for",
    "born 9999-12-31",
    "stubborn: 12.04.1990",
    "dob: 45/99/1990",
]


@pytest.mark.parametrize(("text", "value"), FOUND)
def test_it_is_found_as_a_whole(text: str, value: str) -> None:
    assert values("personal-data", "DATE_OF_BIRTH", text) == [value]


@pytest.mark.parametrize("text", NOT_FOUND)
def test_what_resembles_it_is_left_alone(text: str) -> None:
    assert values("personal-data", "DATE_OF_BIRTH", text) == []
