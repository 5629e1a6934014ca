"""JSON of requests, strictly, and of answers, as far as it can be read in one way only."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.errors import InvalidJSON, InvalidParameter, TooManyValues
from server.wire import strict_json
from server.wire.strict_json import encode_json, parse_answer, parse_object, parse_value

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)  # fmt: skip


@given(VALUES, st.booleans())
def test_both_read_what_json_is(value: Any, ascii_only: bool) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only)
    assert parse_answer(text) == (value, False)
    if ascii_only or text.isascii():
        assert parse_value(text) == value
    assert json.loads(encode_json(value)) == value


@given(st.text())
def test_nothing_else_is_raised_for_other_texts(text: str) -> None:
    try:
        value = json.loads(text)
    except ValueError:
        with pytest.raises(ValueError):
            parse_answer(text)
    else:
        try:
            assert parse_answer(text) == (value, False)
        except ValueError:
            assert "NaN" in text or "Infinity" in text or "9" in text


@pytest.mark.parametrize(
    "number",
    ["1e400", "-1e400", "NaN", "Infinity", "-Infinity", "9" * 400, "-" + "9" * 400, "9" * 5000],
)
def test_numbers_that_no_float_can_hold_are_refused(number: str) -> None:
    with pytest.raises(InvalidJSON, match="out of range|is not JSON"):
        parse_object(f'{{"a": [{number}]}}'.encode())
    with pytest.raises(ValueError, match="out of range|is not JSON"):
        parse_answer(f'{{"a": [{number}]}}')


def test_integers_that_floats_can_hold_keep_their_digits() -> None:
    number = "1" + "0" * 300
    assert parse_object(f'{{"a": {number}}}'.encode()) == {"a": 10**300}
    assert parse_answer(number) == (10**300, False)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a": 1, "a": 2}', {"a": 2}),
        ('{"b": [{"a": 1, "c": 0, "a": 3}], "d": 4}', {"b": [{"a": 3, "c": 0}], "d": 4}),
        ('{"\\u0061": 1, "a": 2}', {"a": 2}),
    ],
)
def test_duplicate_names_are_refused_or_reported(text: str, value: Any) -> None:
    with pytest.raises(InvalidParameter, match="'a' is given more than once"):
        parse_object(text.encode())
    assert parse_answer(text) == (value, True)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x00",
        b'{"a": "\x00"}',
        b'{"a": "\\ud800"}',
        b'{"a": "\xff"}',
        b"\xef\xbb\xbf{}",
        b'{"a": 1} {}',
        b'{"a": 01}',
        b'{"a":' + b"[" * 100 + b"]" * 100 + b"}",
        b'{"a":' + b"[" * 1_000_000,
        b"[1]",
        b"1",
    ],
)
def test_what_parsers_read_differently_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidJSON):
        parse_object(body)


def test_an_answer_may_have_half_a_pair_and_stays_what_it_is() -> None:
    value, _ = parse_answer('{"a": "\\ud800"}')
    assert encode_json(value) == b'{"a":"\\ud800"}'


def test_values_are_counted_before_they_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strict_json, "MAX_VALUES", 10)
    monkeypatch.setattr(strict_json, "MAX_ANSWER_VALUES", 10)
    assert parse_object(b'{"a": "' + b",[{" * 100 + b'"}')["a"] == ",[{" * 100
    with pytest.raises(TooManyValues, match="send fewer"):
        parse_object(b'{"a": [1,2,3,4,5,6,7,8,9,10]}')
    with pytest.raises(ValueError, match="more than 10 values"):
        parse_answer('{"a": [1,2,3,4,5,6,7,8,9,10]}')
