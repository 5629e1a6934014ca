"""JSON in a string of a body."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.screening.bodies.documents import JsonDocument, Number
from server.screening.bodies.scanner import (
    JsonScanner,
    beginning,
    plain_number,
    quoted,
    unquoted,
)
from server.screening.bodies.texts import texts_of

STRINGS = st.text('ab"\\\n\u00e9\U0001f600', max_size=8)
VALUES: st.SearchStrategy[Any] = st.recursive(
    STRINGS | st.integers() | st.booleans() | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(STRINGS, inner, max_size=3),
    max_leaves=10,
)


def _document(text: str) -> tuple[dict[str, str], JsonDocument]:
    holder = {"s": text}
    document = JsonDocument.of(holder, "s", text)
    assert document is not None
    return holder, document


@given(VALUES, st.booleans())
def test_the_values_of_a_document_are_those_of_its_reader(value: Any, ascii_only: bool) -> None:
    found: list[Any] = []

    def walk(item: Any) -> None:
        if isinstance(item, dict):
            for name, inner in item.items():
                found.append(name)
                walk(inner)
        elif isinstance(item, list):
            for inner in item:
                walk(inner)
        elif not isinstance(item, bool) and item is not None:
            found.append(item if isinstance(item, str) else str(item))

    walk([value])
    _, document = _document(json.dumps([value], ensure_ascii=ascii_only))
    assert [document.text(leaf) for leaf in document.leaves] == found


def test_what_is_written_is_valid_and_all_else_stays() -> None:
    text = '{ "a" : "b\\u00e9\\/",\n "n": 4111, "m": "x" }'
    holder, document = _document(text)
    names = {document.text(leaf): index for index, leaf in enumerate(document.leaves)}
    document[names["4111"]] = '"\n'
    document[names["x"]] = Number("7")
    document.write_back()
    assert holder["s"] == '{ "a" : "b\\u00e9\\/",\n "n": "\\"\\n", "m": 7 }'


@given(st.text(max_size=20))
def test_quoting_is_undone(text: str) -> None:
    assert unquoted(quoted(text)) == text == json.loads(f'"{quoted(text)}"')


@pytest.mark.parametrize(
    ("text", "texts"),
    [
        ('{"a": "b"}\n{"a": "c"}', ["a", "b", "c"]),
        ('```json\n{"a": "b"}\n```', ["a", "b", "```"]),
        ('{"a": "b", "c": "d', ["a", "b", "c", "d"]),
        ('{"a": "b"} and so on', ["a", "b", "and so on"]),
        ('{"a": "{\\"b\\": \\"c\\"}"}', ["a", "b", "c"]),
        ('{"a": "b", oops "c"', ['{"a": "b", oops "c"']),
        ("[4111 1111 1111 1111]", ["[4111 1111 1111 1111]"]),
        ("[Note] hello", ["[Note] hello"]),
        ("{curly} hello", ["{curly} hello"]),
        ("{'a': 'b'}", ["{'a': 'b'}"]),
        ('"{\\"a\\": \\"b\\"}"', ["a", "b"]),
        ('"Hello," she said', ['"Hello," she said']),
    ],
)
def test_what_counts_as_json(text: str, texts: list[str]) -> None:
    pieces = texts_of({"content": text}, "user").pieces
    assert [piece.text for piece in pieces] == texts


def test_a_number_on_its_way_is_no_number_yet() -> None:
    scanner = JsonScanner()
    scanner.feed('{"a": 41')
    assert [leaf.kind for leaf in scanner.leaves] == ["name"]
    scanner.feed("11 ")
    scanner.feed("}")
    assert [leaf.kind for leaf in scanner.leaves] == ["name", "number"]


@pytest.mark.parametrize("text", ["", " \n", "`", "```js", "```json\n", "[", "{ ", "\ufeff"])
def test_where_json_may_begin_yet(text: str) -> None:
    assert beginning(text) is None


def test_a_name_that_many_objects_have_is_one_text() -> None:
    body = {"content": json.dumps([{"ann@b": index} for index in range(10_000, 29_999)])}
    texts = texts_of(body, "user")
    (name, *numbers) = texts.pieces
    assert (name.text, len(numbers)) == ("ann@b", 19_999)
    name.write("[EMAIL_1]")
    texts.write_back()
    assert json.loads(body["content"]) == [{"[EMAIL_1]": index} for index in range(10_000, 29_999)]


@pytest.mark.parametrize(
    ("spelled", "plain"),
    [
        ("4.1e3", "4100"),
        ("41E-1", "41E-1"),
        ("41", "41"),
        ("1e999999999", "1e999999999"),
        ("e", "e"),
    ],
)
def test_a_number_is_read_as_people_write_it(spelled: str, plain: str) -> None:
    assert plain_number(spelled) == plain


def test_a_number_of_an_object_is_read_so_too() -> None:
    pieces = texts_of({"metadata": {"card": "x", "n": 4.111111111111111e15}}, "user").pieces
    numbers = [piece.reading for piece in pieces if piece.kind == "number"]
    assert numbers == ["n: 4111111111111111.0"]
