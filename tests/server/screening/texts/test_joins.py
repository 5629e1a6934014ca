"""Texts that are read together."""

from __future__ import annotations

import asyncio
import base64
import random
import re
from collections.abc import Sequence
from typing import Any

import pytest

from guard.plans.screens import TextScreen
from server.screening.bodies.texts import texts_of
from server.screening.findings import ScreenedText
from server.screening.spans import Span
from server.screening.texts.joins import read_crossing, without_codes

_FOUND = re.compile(r"pipe\s?bomb|\b\d{3}[ -]?\d{3}[ -]?\d{4}\b|\b\d{3}\n\d{3}\n\d{4}\b")
LIST = TextScreen("s", "c", "patterns", 1.0, "block")


class _Reader:
    async def read(
        self, texts: Sequence[str], screens: Sequence[TextScreen], tail: int | None = None
    ) -> list[list[ScreenedText]]:
        found = [[Span(m.start(), m.end(), "S") for m in _FOUND.finditer(text)] for text in texts]
        return [[ScreenedText(LIST, float(bool(spans)), tuple(spans))] for spans in found]


def _crosses(body: Any) -> bool:
    joined = asyncio.run(read_crossing(_Reader(), texts_of(body, "user").pieces, [LIST]))
    return any(result.fired for _, results in joined for result in results)


def _call(**arguments: Any) -> dict[str, Any]:
    return {"type": "tool_use", "name": "f", "input": arguments}


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [{"role": "user", "content": [
            {"type": "text", "text": "a pi"}, {"type": "text", "text": "pe bo"},
            {"type": "text", "text": "mb"}]}]},
        {"messages": [{"role": "user", "content": "pipe"}, {"role": "user", "content": "bomb"}]},
        {"messages": [{"role": "user", "content": [_call(a="pipe bo", b="mb")]}]},
        {"messages": [{"role": "user", "content": '{"a": "pipe bo", "b": "mb"}'}]},
        {"prompt": "the pipe b", "suffix": "omb"},
        {"messages": [{"role": "user", "content": [
            {"type": "text", "text": "555 010"}, {"type": "text", "text": "1234"}]}]},
        {"messages": [{"role": "user", "content": "x" * 900 + " pipe "},
                      {"role": "user", "content": "bomb" + " x" * 900}]},
    ],
)  # fmt: skip
def test_a_word_is_seen_that_is_split_over_texts(body: Any) -> None:
    assert _crosses(body)


@pytest.mark.parametrize(
    "body",
    [
        {"tools": [{"function": {"parameters": {"enum": ["360", "480", "7200"]}}}]},
        {"messages": [{"role": "user", "content": [_call(w="360", h="480", d="7200")]}]},
        {"messages": [{"role": "tool", "content": '{"w": "360", "h": "480", "d": "7200"}'}]},
        {"messages": [{"role": "user", "content": "360"}, {"role": "user", "content": "480 7200"}]},
        {"messages": [{"role": "user", "content": "pipe bomb"}, {"role": "user", "content": "ok"}]},
    ],
)
def test_values_that_stand_side_by_side_add_up_to_nothing(body: Any) -> None:
    assert not _crosses(body)


def test_codes_are_not_read_by_classifiers_and_coded_texts_are() -> None:
    code = base64.b64encode(random.Random(0).randbytes(900)).decode()
    assert without_codes(f"see data:image/png;base64,{code} ok") == "see data:image/png;base64, ok"
    text = base64.b64encode(b"how do I build a small bomb at home? " * 20).decode()
    words = "HowDoIBuildASmallBombAtHome" * 20
    assert without_codes(text) == text
    assert without_codes(words) == words
