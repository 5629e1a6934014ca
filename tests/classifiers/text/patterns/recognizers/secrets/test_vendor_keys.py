"""Values that a vendor's name makes a key."""

from __future__ import annotations

import pytest

from tests.classifiers.text.patterns.recognizers.tables import values

FOUND = [
    (
        'datadog_api_key = "a1b2c3d4e5a1b2c3d4e5a1b2c3d4e5a1b2c3d4e5"',
        "a1b2c3d4e5a1b2c3d4e5a1b2c3d4e5a1b2c3d4e5",
    ),
    (
        "CLOUDFLARE_API_KEY=f0e1d2c3b4f0e1d2c3b4f0e1d2c3b4f0e1d2c3b4",
        "f0e1d2c3b4f0e1d2c3b4f0e1d2c3b4f0e1d2c3b4",
    ),
]
NOT_FOUND = [
    "dropbox: internationalizing",
    "the datadog agent, 1234",
    "bitbucket commit aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
]


@pytest.mark.parametrize(("text", "value"), FOUND)
def test_it_is_found_as_a_whole(text: str, value: str) -> None:
    assert values("secrets", "API_KEY", text) == [value]


@pytest.mark.parametrize("text", NOT_FOUND)
def test_what_resembles_it_is_left_alone(text: str) -> None:
    assert values("secrets", "API_KEY", text) == []
