"""International bank accounts, wherever they stand in a sentence."""

from __future__ import annotations

import pytest

from tests.classifiers.text.patterns.recognizers.tables import values

FOUND = [
    (
        "Please send it to ES91 2100 0418 4502 0005 1332 before Friday.",
        "ES91 2100 0418 4502 0005 1332",
    ),
    ("BE68 5390 0754 7034 by noon", "BE68 5390 0754 7034"),
    ("AT611904300234573201 and thanks", "AT611904300234573201"),
    ("gb82west12345698765432", "gb82west12345698765432"),
    ("it is NO93-8601-1117-947.", "NO93-8601-1117-947"),
    ("MT84MALT011000012345MTLCAST001S", "MT84MALT011000012345MTLCAST001S"),
    ("Payment of DE89370400440532013000failed yesterday", "DE89370400440532013000"),
]
NOT_FOUND = [
    "ES91 2100 0418 4502 0005 1333",
    "XX82 WEST 1234 5698 7654 32",
    "DE8937040044053201300",
    "DE893704004405320130001",
    "xDE89370400440532013000",
]


@pytest.mark.parametrize(("text", "value"), FOUND)
def test_it_is_found_as_a_whole(text: str, value: str) -> None:
    assert values("personal-data", "IBAN", text) == [value]


@pytest.mark.parametrize("text", NOT_FOUND)
def test_what_resembles_it_is_left_alone(text: str) -> None:
    assert values("personal-data", "IBAN", text) == []
