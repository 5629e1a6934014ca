"""Private keys are cut out as whole blocks, however they stand in a text."""

from __future__ import annotations

import base64
import random

import pytest

from classifiers.text.patterns.matching import shipped
from tests.classifiers.text.patterns.recognizers.tables import values

LINES = [base64.b64encode(random.Random(i).randbytes(48)).decode() for i in range(26)]
BEGIN, END = "-----BEGIN RSA PRIVATE KEY-----", "-----END RSA PRIVATE KEY-----"
HEADERS = ["Proc-Type: 4,ENCRYPTED", "DEK-Info: AES-128-CBC,0102030405060708090A0B0C0D0E0F10", ""]
PGP = "-----{} PGP PRIVATE KEY BLOCK-----"
WRITTEN = {
    "lines": "\n".join([BEGIN, *LINES, END]),
    "headers": "\n".join([BEGIN, *HEADERS, *LINES, END]),
    "indented": "\n".join(f"    {line}" for line in [BEGIN, *LINES, END]).strip(),
    "one line": BEGIN + "".join(LINES) + END,
    "spaces": f"{BEGIN} {' '.join(LINES)} {END}",
    "escaped": "\\n".join([BEGIN, *LINES, END]),
    "strings": '\\n" +\n  "'.join([BEGIN, *LINES, END]),
    "quoted mail": "\n> ".join([BEGIN, *LINES, END]),
    "PGP": "\r\n".join([PGP.format("BEGIN"), "", *LINES, "=aB3d", PGP.format("END")]),
    "no end": "\n".join([BEGIN, *LINES]),
    "long": "\n".join([BEGIN, *LINES * 4, END]),
}


@pytest.mark.parametrize("form", sorted(WRITTEN))
def test_a_key_is_one_match(form: str) -> None:
    text = f"Here: {WRITTEN[form]}\n\nThen restart."
    assert values("secrets", "PRIVATE_KEY", text) == [WRITTEN[form]]


@pytest.mark.parametrize("form", sorted(set(WRITTEN) - {"no end"}))
def test_a_key_is_open_until_its_end(form: str) -> None:
    key = WRITTEN[form]
    for share in (0.3, 0.6, 0.95):
        text = f"Here: {key[: int(share * len(key))]}"
        assert shipped("secrets").open_from(text) == 6


def test_puttys_form() -> None:
    body = "\n".join(LINES[:3])
    text = f"PuTTY-User-Key-File-3: ssh-rsa\nPrivate-Lines: 3\n{body}\nPrivate-MAC: 0a1b2c"
    assert values("secrets", "PRIVATE_KEY", text) == [f"\n{body}\nPrivate-MAC: 0a1b2c"]


@pytest.mark.parametrize(
    "text",
    [
        f"a key begins with {BEGIN} and goes on for some lines",
        "-----BEGIN CERTIFICATE-----\n" + LINES[0],
        "-----BEGIN PUBLIC KEY-----\n" + LINES[0],
    ],
)
def test_what_is_no_key_is_left_alone(text: str) -> None:
    assert values("secrets", "PRIVATE_KEY", text) == []
