"""What is not decoded would have been no text."""

from __future__ import annotations

import base64
import random
import zlib
from collections.abc import Iterator

import pytest

from classifiers.text.disguises.codecs import bases
from classifiers.text.disguises.codecs.text_digits import (
    STRICT_BASE64,
    STRICT_BASE85,
    may_be_base64,
    may_be_base85,
)

_SOURCES = (
    "abcdef ghi\n\tXYZ.!~",
    "äöü жщ 你好 é€ 🙂 aE",
    "\x00\x08\x0b\x1c\x7f\x80\u07ff\uffff\U0010ffff Az",
)
_BYTES = [*b" Aa~\t\n\x1c", 0x1B, 0x7F, 0x80, 0xBF, 0xC3, 0xE4, 0xF0, 0xF8, 0xFF]
_FORMS = {form.alphabet: form for form in bases._FORMS_85}


def _samples(count: int) -> Iterator[bytes]:
    chance = random.Random(0)
    for number in range(count):
        if number % 4 == 3:
            yield bytes(chance.choices(_BYTES, k=chance.randint(8, 24)))
        else:
            text = "".join(chance.choices(_SOURCES[number % 4], k=chance.randint(4, 24)))
            yield text.encode()[:24]


def test_digits_of_base64_that_are_refused_decode_to_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chance = random.Random(1)
    runs = [base64.b64encode(data).decode().rstrip("=") for data in _samples(4000)]
    runs += [chance.choice(("", "a", "Zz", "9+/")) + run for run in runs]
    runs += [
        "".join(
            chance.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/", k=33)
        )
        for _ in range(2000)
    ]
    runs += [base64.b64encode(zlib.compress(b"abcabc abc", level)).decode() for level in (1, 6, 9)]
    short = [run for run in runs if len(run) <= STRICT_BASE64]
    refused = [run for run in short if not may_be_base64(run)]
    assert len(refused) > 1000
    monkeypatch.setattr(bases, "may_be_base64", lambda digits: True)
    assert [run for run in refused if bases._from_base64(run) is not None] == []


@pytest.mark.parametrize("alphabet", list(_FORMS))
def test_digits_of_base85_that_are_refused_decode_to_nothing(
    alphabet: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = random.Random(2)
    encode = base64.a85encode if alphabet.startswith("!") else base64.b85encode
    runs = [encode(data).decode() for data in _samples(4000)]
    runs += ["".join(chance.choices(alphabet, k=30)) for _ in range(2000)]
    short = [run for run in runs if len(run) <= STRICT_BASE85]
    refused = [run for run in short if not may_be_base85(run, alphabet)]
    assert len(refused) > 500
    monkeypatch.setattr(bases, "may_be_base85", lambda digits, alphabet: True)
    monkeypatch.setattr(bases, "is_language", lambda text: True)
    assert [run for run in refused if bases._from_base85(run, _FORMS[alphabet])] == []


@pytest.mark.parametrize(
    "text", ["Attack at dawn!", "Grüße an alle", "привет мир", "你好，世界！", "a\tb\nc"]
)
def test_texts_are_decoded_in_every_phase(text: str) -> None:
    run = base64.b64encode(text.encode()).decode()
    for before in ("", "x", "xy", "xyz"):
        assert may_be_base64(before + run.rstrip("="))
    for form in _FORMS.values():
        encode = base64.a85encode if form.alphabet.startswith("!") else base64.b85encode
        assert may_be_base85(encode(text.encode()).decode(), form.alphabet)
