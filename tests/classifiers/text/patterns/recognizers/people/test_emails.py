"""E-mail addresses, and what has an at sign but is none."""

from __future__ import annotations

import pytest

from tests.classifiers.text.patterns.recognizers.tables import values

FOUND = [
    ("login:ann@example.com", "ann@example.com"),
    ("邮箱：zhang.san@example.com", "zhang.san@example.com"),
    ("write to _ann@example.com_ today", "ann@example.com"),
    ("https://shop.example/u/ann@example.com/orders", "ann@example.com"),
    ("Ask max.mustermann+x@mail.example.co.uk.Then go", "max.mustermann+x@mail.example.co.uk"),
    ("joe [at] example [dot] com, please", "joe [at] example [dot] com"),
    ("max@müller.de is it", "max@müller.de"),
    ("info@xn--mller-kva.de", "info@xn--mller-kva.de"),
    ("<a@b.photography>", "a@b.photography"),
]
NOT_FOUND = [
    "systemctl status getty@tty1.service user@1000.service",
    "use logo@2x.png",
    "@property\n@functools.wraps(f)",
    "follow us @acme.official",
    "git clone git@github.com:org/repo.git",
    "see ssh://git@github.com:22/org",
    "https://joe:s3cr3tpw1@db.example.com/x",
    "npm i lodash@4.17.21",
    "user@host",
    "a@b..com",
    "me@-x.com",
]


@pytest.mark.parametrize(("text", "value"), FOUND)
def test_it_is_found_as_a_whole(text: str, value: str) -> None:
    assert values("personal-data", "EMAIL", text) == [value]


@pytest.mark.parametrize("text", NOT_FOUND)
def test_what_resembles_it_is_left_alone(text: str) -> None:
    assert values("personal-data", "EMAIL", text) == []
