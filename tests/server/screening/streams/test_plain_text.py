"""Text with blocks of code that hold JSON, however it comes."""

from __future__ import annotations

import itertools
import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.screening.bodies.scanner import block_of_json, may_begin_block
from server.screening.bodies.texts import texts_of
from tests.server.screening.streams.test_channel import _MARK, _SECRET, _cut, _streamed

BLOCKS = st.builds(
    "{}{}{}\n```{}".format,
    st.sampled_from(["", "so: ", "see `x`\n", "dd ", "``", "a```b "]),
    st.sampled_from(["```json\n", "```\n", "```JSON \r\n\n", "```js\n", "```python\n"]),
    st.sampled_from(
        ['{"a": 777, "b": "x\\ndd", "c": [1]}', '["dd"]', '{"a": "b', "[x]", "{}", "1"]
    ),
    st.sampled_from(["", "\n", " and dd\n", "`"]),
)
TEXTS = st.lists(BLOCKS, max_size=4).map("".join)


@settings(deadline=None)
@given(TEXTS, st.data(), st.integers(4, 40))
def test_what_is_not_altered_leaves_as_it_came(
    text: str, data: st.DataObject, hold_back: int
) -> None:
    assert "".join(_streamed(_cut(text, data), hold_back, find=lambda text: ())) == text


@settings(deadline=None)
@given(TEXTS, st.data(), st.integers(8, 40))
def test_nothing_passes_unread_and_blocks_stay_json(
    text: str, data: st.DataObject, hold_back: int
) -> None:
    out = "".join(_streamed(_cut(text, data), hold_back))
    assert not re.search("dd|77", out)
    # one that is broken may take in what follows
    blocks = list(itertools.takewhile(lambda block: block is not None, _blocks(text)))
    assert None not in _blocks(out)[: len(blocks)]


def _blocks(text: str) -> list[str | None]:
    """The blocks of JSON in a text, None for one that is none."""
    found: list[str | None] = []
    at = 0
    while (start := block_of_json(text, at)) is not None:
        closes = text.find("\n```", start)
        at = closes if closes >= 0 else len(text)
        block = text[start:at]
        try:
            json.loads(block)
            found.append(block)
        except ValueError:
            found.append(None)
    return found


@given(TEXTS, st.integers(1, 40))
def test_a_block_is_known_when_it_begins(text: str, size: int) -> None:
    start = block_of_json(text)
    if start is not None:
        for end in range(start + 1):
            prefix = text[:end]
            fence = text.rindex("```", 0, start)
            assert end <= fence or may_begin_block(prefix) <= fence or block_of_json(prefix)


@pytest.mark.parametrize(
    "end", ['{"n": 4', '{"n": 777', '{"n": tru', '{"a": "b\\', '{"a": "\\u00', "[1, -"]
)
def test_a_text_that_breaks_off_in_a_block_leaves_to_its_end(end: str) -> None:
    out = "".join(_streamed([*f"so:\n```json\n{end}"], 16))
    assert out.startswith("so:\n```json\n")
    assert ("777" in end) == (out != f"so:\n```json\n{end}")


def test_blocks_of_a_whole_text_are_read_and_written_as_json() -> None:
    body = {"content": 'So:\n```json\n{"card": 77777, "b": "x\\ndd"}\n```\nor\n```\n["dd"]\n```\n'}
    texts = texts_of(body, "user")
    for piece in texts.pieces:
        if _SECRET.search(piece.text):
            piece.write(_MARK if piece.kind == "number" else _SECRET.sub(_MARK, piece.text))
    texts.write_back()
    first, second = _blocks(body["content"])
    assert first is not None and json.loads(first) == {"card": _MARK, "b": f"x\n{_MARK}"}
    assert second is not None and json.loads(second) == [_MARK]
    assert body["content"].startswith("So:\n```json\n") and body["content"].endswith("\n```\n")
