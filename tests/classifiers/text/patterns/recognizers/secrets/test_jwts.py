"""Web tokens of any length."""

from __future__ import annotations

import base64
import json

import pytest

from tests.classifiers.text.patterns.recognizers.tables import found, values


def _part(claims: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")


@pytest.mark.parametrize("roles", [0, 40, 300])
def test_a_token_is_found_as_a_whole(roles: int) -> None:
    token = f"{_part({'alg': 'RS256'})}.{_part({'roles': ['admin'] * roles})}.{'a1B2c3d4' * 8}"
    text = f"Authorization: Bearer {token}\nHost: x"
    assert found("secrets", text) == [("JWT", token)]


def test_an_encrypted_token_has_five_parts() -> None:
    token = ".".join(
        [_part({"alg": "dir", "enc": "A256GCM"}), "", "a1B2c3d4" * 2, "x" * 40, "y" * 22]
    )
    assert values("secrets", "JWT", f"it is {token}.") == [token]


@pytest.mark.parametrize(
    "text", ["eyJ.eyJ.x", "eyJhbGciOiJIUzI1NiJ9", "keyJhbGciOiJI.eyJhbGciOiJI"]
)
def test_a_part_of_one_is_none(text: str) -> None:
    assert values("secrets", "JWT", text) == []
