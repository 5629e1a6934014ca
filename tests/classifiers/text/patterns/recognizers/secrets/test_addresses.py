"""Passwords in addresses."""

from __future__ import annotations

import pytest

from tests.classifiers.text.patterns.recognizers.tables import values

FOUND = [
    ("CACHE=redis://:s3cr3tpw@cache.example:6379/0", "s3cr3tpw"),
    ("postgres://joe:s3cr3t@db.example/x", "s3cr3t"),
    ("amqp://:s3cr3tpw@mq.example", "s3cr3tpw"),
]
NOT_FOUND = [
    "postgres://user:password@localhost/db",
    "https://${USER}:${PASS}@host",
    "https://example.com:8080/x@y",
    "see https://a.example/b:c",
]


@pytest.mark.parametrize(("text", "value"), FOUND)
def test_it_is_found_as_a_whole(text: str, value: str) -> None:
    assert values("secrets", "PASSWORD", text) == [value]


@pytest.mark.parametrize("text", NOT_FOUND)
def test_what_resembles_it_is_left_alone(text: str) -> None:
    assert values("secrets", "PASSWORD", text) == []
