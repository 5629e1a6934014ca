"""Every text of a body, with its place."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guard.config.policy_schema import PLACES
from server.screening.bodies.scanner import MAX_NESTING
from server.screening.bodies.texts import texts_of
from server.screening.texts.joins import conversation
from server.wire.strict_json import NestedTooDeeply


def _places(body: Any) -> list[tuple[str, str, str]]:
    pieces = texts_of(body, "user").pieces
    return [(p.place, p.path, p.text) for p in pieces if p.kind != "label"]


def test_texts_of_a_chat_by_who_says_them() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f x", "arguments": '{"q": "x y"}'}}
    body = {
        "model": "m",
        "messages": [
            {"role": "system", "content": "be nice"},
            {"role": "developer", "content": "very"},
            {"role": "user", "content": [{"type": "text", "text": "hello"}]},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c", "content": "found"},
            {"role": "nobody", "content": "hm"},
        ],
    }
    assert _places(body) == [
        ("system", "messages[0].content", "be nice"),
        ("system", "messages[1].content", "very"),
        ("user", "messages[2].content[0].text", "hello"),
        ("arguments", "messages[3].tool_calls[0].function.name", "f x"),
        ("arguments", "messages[3].tool_calls[0].function.arguments", "q"),
        ("arguments", "messages[3].tool_calls[0].function.arguments.q", "x y"),
        ("tool", "messages[4].content", "found"),
        ("user", "messages[5].content", "hm"),
    ]


@pytest.mark.parametrize(
    ("body", "places"),
    [
        ({"input": "hello you"}, [("user", "input")]),
        ({"instructions": "be nice"}, [("system", "instructions")]),
        ({"system": [{"type": "text", "text": "be nice"}]}, [("system", "system[0].text")]),
        ({"prompt": ["a b", "c d"]}, [("user", "prompt[0]"), ("user", "prompt[1]")]),
        (
            {"input": [{"type": "function_call_output", "call_id": "1", "output": "it is"}]},
            [("tool", "input[0].output")],
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "tool_use", "input": {"a": "b c"}}]}
                ]
            },
            [("arguments", "messages[0].content[0].input.a")] * 2,
        ),
        ({"something_new": {"deep": ["x y"]}}, [("user", "something_new.deep[0]")]),
    ],
)
def test_texts_of_other_bodies(body: Any, places: list[tuple[str, str]]) -> None:
    assert [(place, path) for place, path, _ in _places(body)] == places


@given(
    st.recursive(
        st.text("xy ", min_size=1, max_size=6).map(lambda text: f"s {text}"),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    ["text", "content", "embedding", "model", "type", "url", "data", "k"]
                ),
                inner,
                max_size=3,
            )
        ),
        max_leaves=12,
    )
)
def test_no_text_with_a_space_in_it_is_passed_over(body: Any) -> None:
    def strings(value: Any) -> list[str]:
        if isinstance(value, str):
            return [value]
        inner = value.values() if isinstance(value, dict) else value
        return [text for item in inner for text in strings(item)]

    body = {"any": body}
    pieces = texts_of(body, "user").pieces
    assert sorted(p.text for p in pieces if p.kind not in {"key", "name"}) == sorted(strings(body))


def test_the_kinds_of_content_that_is_not_text_are_reported() -> None:
    parts = [
        {"type": "image_url", "image_url": {"url": "https://x.y/z.png"}},
        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
        {"type": "document", "source": {"type": "base64", "data": "AAAA"}},
    ]
    texts = texts_of({"messages": [{"role": "user", "content": parts}]}, "user")
    assert set(texts.opaque) == {"pictures", "audio", "files"}
    assert [piece.text for piece in texts.pieces if piece.kind != "label"] == []


def test_a_document_that_is_text_is_read() -> None:
    part = {"type": "document", "source": {"type": "text", "data": "how"}}
    texts = texts_of({"messages": [{"role": "user", "content": [part]}]}, "user")
    assert [piece.text for piece in texts.pieces] == ["how"]
    assert not texts.opaque


def test_names_in_tools_are_read_where_they_are_no_words() -> None:
    schema = {"type": "object", "properties": {"how to do it": {"type": "string"}}}
    pieces = texts_of({"tools": [{"function": {"parameters": schema}}]}, "user").pieces
    assert [(piece.text, piece.is_key) for piece in pieces] == [("how to do it", True)]


def test_the_last_turns_of_users_and_tools() -> None:
    turns = [("user", "a a"), ("assistant", "b b"), ("tool", "c c"), ("user", "d d")]
    body = {"messages": [{"role": role, "content": text} for role, text in turns]}
    texts = texts_of(body, "user")
    assert [piece.text for piece in conversation(texts, 2, PLACES)] == ["c c", "d d"]
    assert [piece.text for piece in conversation(texts, 2, {"user"})] == ["a a", "d d"]


def test_what_is_nested_too_deeply() -> None:
    body: Any = "x"
    for _ in range(100):
        body = [body]
    with pytest.raises(NestedTooDeeply):
        texts_of({"a": body}, "user")


def test_json_in_strings_is_read_to_a_bound() -> None:
    """What is written anew doubles at each level."""

    def nested(levels: int) -> dict[str, str]:
        text = '{"note":"x"}'
        for _ in range(levels):
            text = text.replace("\\", "\\u005c").replace('"', "\\u0022")
            text = f'{{"a":"{text}"}}'
        return {"content": text}

    body = nested(MAX_NESTING)
    texts = texts_of(body, "user")
    (note,) = [piece for piece in texts.pieces if piece.text == "x"]
    note.write("y")
    texts.write_back()
    assert len(body["content"]) < 8 * len(nested(MAX_NESTING)["content"])
    for _ in range(MAX_NESTING):
        body = {"content": json.loads(body["content"])["a"]}
    assert json.loads(body["content"]) == {"note": "y"}
    with pytest.raises(NestedTooDeeply):
        texts_of(nested(MAX_NESTING + 1), "user")
