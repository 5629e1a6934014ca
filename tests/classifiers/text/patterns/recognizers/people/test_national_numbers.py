"""Numbers that states give to people."""

from __future__ import annotations

import pytest

from tests.classifiers.text.patterns.recognizers.tables import values

FOUND = [
    ("CPF 390.533.447-05", "390.533.447-05"),
    ("it is 390.533.447-05 then", "390.533.447-05"),
    ("numéro de sécurité sociale 2 95 10 99 126 111 93", "2 95 10 99 126 111 93"),
    ("RSSMRA85T10A562S here", "RSSMRA85T10A562S"),
    ("PESEL: 44051401359", "44051401359"),
    ("tax_id = 44051401359", "44051401359"),
    ("身份证号：11010519491231002X", "11010519491231002X"),
    ("DNI 54362315K", "54362315K"),
    ("personnummer 880320-0016", "880320-0016"),
    ("hetu 131052-308T", "131052-308T"),
    ("BSN 1112.22.333", "1112.22.333"),
    ("Aadhaar 2341 2341 2346", "2341 2341 2346"),
    ("AHV-Nummer 756.9217.0769.85", "756.9217.0769.85"),
    ("NHS number 943 476 5919", "943 476 5919"),
]
NOT_FOUND = [
    "44051401359",
    "CPF 390.533.447-06",
    "in a single 193456787",
    "SHA 11010519491231002X0",
    "order 9434765919",
    "1700000000123",
    # counties of China that the tables of stdnum do not have
    "order 229040196408207361 shipped",
    "身份证 131225239307170980",
]


@pytest.mark.parametrize(("text", "value"), FOUND)
def test_it_is_found_as_a_whole(text: str, value: str) -> None:
    assert values("personal-data", "NATIONAL_ID", text) == [value]


@pytest.mark.parametrize("text", NOT_FOUND)
def test_what_resembles_it_is_left_alone(text: str) -> None:
    assert values("personal-data", "NATIONAL_ID", text) == []
