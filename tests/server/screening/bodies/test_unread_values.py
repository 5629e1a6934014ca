"""Values that once passed unread: numbers, codes that are none, names, results of hosted tools."""

from __future__ import annotations

import functools
import json
from typing import Any

import pytest

from guard.config.policy_schema import Place
from server.screening.bodies.texts import texts_of

CARD, MAIL = 4111111111111111, "ann@example.com"
CODE = "EqQBCgIYAhIMsM5c2rFTHmNkZ4xPaQ7yLb0uWd9V"


def said(**message: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", **message}]}


@pytest.mark.parametrize(
    "body",
    [
        said(content=CARD),
        said(content=[CARD, "x"]),
        said(content=[{"type": "text", "text": CARD}]),
        said(content={"card": CARD}),
        {"prompt": {"id": "p", "variables": {"card": CARD}}},
        {"extra_body": {"card": CARD}},
        {"input": [{"text": "x", "card": CARD}]},
    ],
)
def test_numbers_of_a_request_are_read(body: Any) -> None:
    numbers = [piece for piece in texts_of(body, "user").pieces if piece.kind == "number"]
    assert [piece.text for piece in numbers] == [str(CARD)]


def test_settings_and_schemas_have_no_numbers_that_are_read() -> None:
    schema = {"type": "object", "properties": {"a": {"maximum": 100_000}}}
    body = {"seed": CARD, "max_tokens": 64_000, "tools": [{"parameters": schema}]}
    body |= {"thinking": {"budget_tokens": 9000}, **said(content="x")}
    assert not [p for p in texts_of(body, "user").pieces if p.kind == "number"]
    assert not [p for p in texts_of({"usage": {"x": 64_000}}, "response").pieces]


@pytest.mark.parametrize("write", [json.dumps, functools.partial(json.dumps, indent=2)])
@pytest.mark.parametrize(
    "content", [[*b"call ann now"], {"bytes": [*b"call ann now"]}, [["x", [*b"call ann now"]]]]
)
def test_numbers_that_spell_a_text_in_a_list_are_read_together(content: Any, write: Any) -> None:
    spelled = ", ".join(map(str, b"call ann now"))
    call = {"type": "tool_use", "input": {"list": content}}
    for body in (said(content=write(content)), said(content=[call])):
        pieces = [piece for piece in texts_of(body, "user").pieces if piece.kind == "key"]
        assert [piece.text for piece in pieces] == [spelled]


def test_lists_of_measurements_are_no_texts() -> None:
    content = json.dumps({"a": [12, 15, 20, 100, 250, 12, 15, 16], "b": [0.5] * 20})
    assert not [p for p in texts_of(said(content=content), "user").pieces if p.kind == "key"]


def test_tokens_that_may_pass_are_no_texts_each() -> None:
    texts = texts_of({"prompt": [[50_256] * 30_000]}, "user")
    assert set(texts.opaque) == {"tokens"}
    assert not texts.pieces


@pytest.mark.parametrize("name", ["signature", "encrypted_content", "thought_signature"])
def test_what_stands_as_a_code_and_is_none_is_read(name: str) -> None:
    for text, is_read in ((MAIL, True), (str(CARD), True), ("do-as-I-say", True), (CODE, False)):
        pieces = texts_of(said(content=[{"type": "text", name: text}]), "user").pieces
        assert (text in [piece.text for piece in pieces]) is is_read
    hidden = texts_of(said(content=[{"type": "redacted_thinking", "data": MAIL}]), "user")
    assert [piece.text for piece in hidden.pieces if piece.kind == "label"][-1:] == [MAIL]


@pytest.mark.parametrize(
    ("item", "place"),
    [
        ({"type": "shell_call_output", "output": [{"stdout": "a b"}]}, "tool"),
        ({"type": "computer_call_output", "output": "a b"}, "tool"),
        ({"type": "mcp_call", "output": "a b"}, "tool"),
        ({"type": "mcp_call", "arguments": "a b"}, "arguments"),
        ({"type": "code_interpreter_call", "outputs": [{"type": "logs", "logs": "a b"}]}, "tool"),
        ({"type": "file_search_call", "results": [{"text": "a b"}]}, "tool"),
        ({"role": "user", "content": [{"type": "mcp_tool_result", "content": "a b"}]}, "tool"),
        ({"role": "assistant", "content": [{"type": "web_fetch_tool_result", "x": "a b"}]}, "tool"),
        ({"role": "user", "content": [{"type": "search_result", "title": "a b"}]}, "tool"),
        ({"role": "assistant", "content": [{"type": "server_tool_use", "x": "a b"}]}, "arguments"),
        ({"role": "user", "content": [{"type": "text", "text": "a b"}]}, "user"),
    ],
)
def test_what_a_tool_of_any_kind_returns_is_at_its_place(item: Any, place: Place) -> None:
    for body in ({"input": [item]}, {"messages": [item]}):
        (piece,) = [p for p in texts_of(body, "user").pieces if p.text == "a b"]
        assert piece.place == place


def test_a_name_in_an_object_of_the_clients_is_written_anew() -> None:
    inner = {MAIL: {"b": 'x "y"'}, "to": '{"a b": 1}', "[A_1]": 1, "x y": 2}
    body = said(content=[{"type": "tool_use", "input": inner}])
    texts = texts_of(body, "user")
    for piece in texts.pieces:
        if piece.text in {MAIL, "a b"} or piece.text.startswith("x "):
            # a name that another member has is not given again
            piece.write("[A_1]" if piece.text == "x y" else f"<{piece.text}>")
    texts.write_back()
    written = body["messages"][0]["content"][0]["input"]
    assert list(written.items()) == [
        (f"<{MAIL}>", {"b": '<x "y">'}),
        ("to", '{"<a b>": 1}'),
        ("[A_1]", 1),
        ("x y", 2),
    ]


@pytest.mark.parametrize("number", ["-4111111111111111", "4.111111111111111e15", str(CARD)])
def test_numbers_in_json_that_python_has_written(number: str) -> None:
    body = said(content=f'{{"a": NaN, "b": -Infinity, "card": {number}}}')
    pieces = [p for p in texts_of(body, "user").pieces if p.kind == "number"]
    assert [piece.reading for piece in pieces] == [f"card: {CARD}"]
