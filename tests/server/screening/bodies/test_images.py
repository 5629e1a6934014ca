"""Images in bodies: they are pictures, whatever their size, and the texts around them are read."""

from __future__ import annotations

import base64
from functools import partial
from typing import Any

import pytest

from server.screening.bodies.texts import texts_of
from tests.processor_time import takes_less

FILE = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 4


def shown(coded: str) -> list[dict[str, Any]]:
    """One body of each API: a text, an image, a text."""
    url = f"data:image/png;base64,{coded}"
    source = {"type": "base64", "media_type": "image/png", "data": coded}
    before, after = {"type": "text", "text": "before"}, {"type": "text", "text": "after"}

    def message(part: dict[str, Any]) -> list[dict[str, Any]]:
        return [{"role": "user", "content": [before, part, after]}]

    return [
        {"messages": message({"type": "image_url", "image_url": {"url": url}})},
        {"input": message({"type": "input_image", "image_url": url})},
        {"messages": message({"type": "image", "source": source})},
    ]


def wrapped(line: int, ends: str = "\n") -> str:
    coded = base64.b64encode(FILE).decode()
    return ends.join(coded[at : at + line] for at in range(0, len(coded), line)) + ends


@pytest.mark.parametrize(
    "coded",
    [base64.b64encode(FILE).decode(), wrapped(76), wrapped(64, "\r\n"), wrapped(76).rstrip("=\n")],
)
def test_the_texts_around_an_image_are_read_and_it_is_not(coded: str) -> None:
    for body in shown(coded):
        texts = texts_of(body, "user")
        assert [piece.text for piece in texts.pieces] == ["before", "after"]
        assert set(texts.opaque) == {"pictures"}


@pytest.mark.parametrize("text", ["a forbidden thing", "forbidden\nthing", "x" * 80 + "\na thing"])
def test_words_in_place_of_an_image_are_read(text: str) -> None:
    for body in shown(text):
        assert any("thing" in piece.text for piece in texts_of(body, "user").pieces)


@pytest.mark.parametrize("line", [2**30, 76])
def test_megabytes_of_an_image_take_no_time(line: int) -> None:
    coded = "QUJD" * 2_000_000
    if line == 76:
        coded = (coded[:line] + "\n") * (len(coded) // line)
    for body in shown(coded):
        assert takes_less(partial(texts_of, body, "user"), 1.5)
        texts = texts_of(body, "user")
        assert [piece.text for piece in texts.pieces] == ["before", "after"]
