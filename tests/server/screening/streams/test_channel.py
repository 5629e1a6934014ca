"""A channel whose text is JSON, however it comes."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.screening.bodies.documents import JsonDocument
from server.screening.bodies.scanner import MAX_NESTING, quoted
from server.screening.spans import Span
from server.screening.streams.channel import ChannelBuffer
from server.screening.streams.hold_back import HoldBackBuffer
from server.wire.strict_json import NestedTooDeeply

_SECRET = re.compile(r"a[bc\n\"]{1,6}a|dd|77+")
_MARK = '<"\n>'
STRINGS = st.text('abcd"\\\n\u00e9\U0001f600 {}[]', max_size=30)
VALUES: st.SearchStrategy[Any] = st.recursive(
    STRINGS | st.integers(-1000, 99_777) | st.booleans() | st.none() | st.floats(-9, 9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(STRINGS, inner, max_size=4),
    max_leaves=12,
)


def _make(hold_back: int) -> Any:
    def make(*, prefix: str = "", is_number: bool = False) -> HoldBackBuffer:
        def replace(span: Span, text: str) -> str:
            return f'"{quoted(_MARK)}"' if is_number else _MARK

        return HoldBackBuffer(hold_back, 40, replace, prefix=prefix, atomic=is_number)

    return make


def _streamed(pieces: list[str], hold_back: int, *, find: Any = _SECRET.finditer) -> list[str]:
    """What leaves for each piece, and at the end."""
    buffer = ChannelBuffer(_make(hold_back))
    out = []

    def read(is_last: bool) -> None:
        for window in buffer.due_windows(all=is_last):
            window.mark_read([Span(m.start(), m.end(), "S") for m in find(window.reading)])

    for piece in pieces:
        buffer.add(piece)
        read(False)
        out.append(buffer.take(buffer.free))
    buffer.finish()
    read(True)
    buffer.release()
    assert buffer.free == buffer.length
    out.append(buffer.take(buffer.free))
    return out


def _cut(text: str, data: st.DataObject) -> list[str]:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=20)))
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


def _redacted(value: Any, key: str = "") -> Any:
    """A value of JSON with its secrets replaced."""
    if isinstance(value, dict):
        return {_text(name): _redacted(item, name) for name, item in value.items()}
    if isinstance(value, list):
        return [_redacted(item, key) for item in value]
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return _MARK if _SECRET.search(json.dumps(value)) else value
    return value


def _text(text: str) -> str:
    document = JsonDocument.of({}, "", text)
    return _SECRET.sub(lambda match: _MARK, text) if document is None else text


def _is_plain(value: Any) -> bool:
    """Whether no string in it may be JSON in turn."""
    if isinstance(value, dict):
        return all(_is_plain(name) and _is_plain(item) for name, item in value.items())
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return not isinstance(value, str) or value.lstrip()[:1] not in {"{", "[", "`"}


@settings(deadline=None)
@given(
    VALUES.filter(_is_plain), st.booleans(), st.sampled_from([None, 1]), st.data(),
    st.integers(4, 40),
)  # fmt: skip
def test_json_is_redacted_value_by_value(
    value: Any, ascii_only: bool, indent: int | None, data: st.DataObject, hold_back: int
) -> None:
    text = json.dumps({"k": value}, ensure_ascii=ascii_only, indent=indent)
    out = "".join(_streamed(_cut(text, data), hold_back))
    assert json.loads(out, object_pairs_hook=list) == _pairs(_redacted({"k": value}))


def _pairs(value: Any) -> Any:
    if isinstance(value, dict):
        return [(name, _pairs(item)) for name, item in value.items()]
    return [_pairs(item) for item in value] if isinstance(value, list) else value


@settings(deadline=None)
@given(VALUES, st.booleans(), st.data(), st.integers(4, 40))
def test_what_leaves_parses_whenever_what_came_did(
    value: Any, ascii_only: bool, data: st.DataObject, hold_back: int
) -> None:
    text = json.dumps([value, json.dumps([value])], ensure_ascii=ascii_only)
    json.loads("".join(_streamed(_cut(text, data), hold_back)))


@settings(deadline=None)
@given(
    st.text('ab{}[]":,\\\n 01u`', max_size=40) | VALUES.map(json.dumps), st.data(),
    st.integers(4, 40),
)  # fmt: skip
def test_what_is_not_altered_leaves_as_it_came(
    text: str, data: st.DataObject, hold_back: int
) -> None:
    assert "".join(_streamed(_cut(text, data), hold_back, find=lambda text: ())) == text


@settings(deadline=None)
@given(st.text('ad7{}[]":,\\ 01`\n', max_size=40), st.data(), st.integers(8, 40))
def test_nothing_passes_unread_whether_it_is_json_or_not(
    text: str, data: st.DataObject, hold_back: int
) -> None:
    out = "".join(_streamed(_cut(text, data), hold_back))
    assert "ddd" not in out.replace("\\", "")


def test_values_leave_while_their_object_is_open() -> None:
    out = _streamed(['{"a": "b', 'c", "n": 1', "2, ", '"e": "dd', '"}'], 40)
    assert out == ['{"a": "', 'bc", "n": ', "12, ", '"e": "', f'{quoted(_MARK)}"}}', ""]


def test_json_in_a_string_of_json_is_read_as_such() -> None:
    inner = json.dumps({"note": "x\ndd\n", "n": 777})
    out = "".join(_streamed([*json.dumps({"arguments": inner})], 16))
    assert json.loads(json.loads(out)["arguments"]) == {"note": f"x\n{_MARK}\n", "n": _MARK}


def test_a_value_is_read_with_its_name() -> None:
    def find(text: str) -> list[re.Match[str]]:
        return list(re.finditer("born On: [0-9-]{10}", text))

    (whole, end) = _streamed(['{"bornOn": "1990-04-12", "paidOn": "1990-04-12"}'], 40, find=find)
    assert json.loads(whole + end) == {"bornOn": _MARK, "paidOn": "1990-04-12"}


def _nested(text: str, levels: int) -> str:
    """A text in strings of JSON, spelled so that each level adds few characters."""
    for _ in range(levels):
        text = text.replace("\\", "\\u005c").replace('"', "\\u0022")
        text = f'{{"a":"{text}"}}'
    return text


@pytest.mark.parametrize("size", [5, 10_000])
def test_json_in_strings_is_read_to_a_bound(size: int) -> None:
    text = _nested('{"note":"x\\ndd"}', MAX_NESTING)
    value = json.loads(
        "".join(_streamed([text[i : i + size] for i in range(0, len(text), size)], 20))
    )
    while "a" in value:
        value = json.loads(value["a"])
    assert value == {"note": f"x\n{_MARK}"}
    with pytest.raises(NestedTooDeeply):
        _streamed([_nested('{"note":"x"}', MAX_NESTING + 1)], 20)


def test_a_number_is_restored_as_one_at_every_level() -> None:
    class Numbers:
        def number(self, text: str) -> str | None:
            return "42" if text == "[N_1]" else None

        def begins_number(self, text: str) -> bool:
            return "[N_1]".startswith(text)

    text = json.dumps({"a": json.dumps({"b": ["[N_1]", "[N_2]"]})})
    for size in (1, 3, 1000):
        buffer = ChannelBuffer(_make(20), numbers=Numbers())
        left = ""
        for start in range(0, len(text), size):
            buffer.add(text[start : start + size])
            for window in buffer.due_windows():
                window.mark_read([])
            left += buffer.take(buffer.free)
        buffer.finish()
        for window in buffer.due_windows(all=True):
            window.mark_read([])
        buffer.release()
        left += buffer.take(buffer.free)
        assert json.loads(json.loads(left)["a"]) == {"b": [42, "[N_2]"]}
