"""Answers of models of each family, whole and in pieces of every size."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.services.tools import FAMILIES
from server.services.tools.parser import CallDelta, CallEnd, Piece, ToolParser

NAMES = ("weather", "get_time", "send.mail")
PARIS = '{"city": "Paris"}'
WEATHER = f'{{"name": "weather", "arguments": {PARIS}}}'
TIME = '{"name": "get_time", "arguments": {}}'


def read(family: str, answer: str, size: int = 0, *, single: bool = False) -> list[Piece]:
    parser = ToolParser(FAMILIES[family], NAMES, single=single)
    parts = [answer[at : at + size] for at in range(0, len(answer), size)] if size else [answer]
    pieces = [piece for part in parts for piece in parser.push(part)]
    return [*pieces, *parser.finish()]


def summary(pieces: list[Piece]) -> tuple[str, list[tuple[str, str]]]:
    """The text, broken calls as what the model wrote, and the whole calls."""
    text, names, arguments = "", {}, {}
    for piece in pieces:
        if isinstance(piece, str):
            text += piece
        elif isinstance(piece, CallDelta):
            if piece.name is not None:
                assert piece.id
                names[piece.number] = piece.name
            arguments[piece.number] = arguments.get(piece.number, "") + piece.arguments
        elif piece.broken is not None:
            assert arguments.pop(piece.number) in piece.broken
            text += piece.broken
    return text, [(names[n], arguments[n]) for n in arguments]


@pytest.mark.parametrize(
    ("family", "answer", "text", "calls"),
    [
        ("hermes", f"<tool_call>\n{WEATHER}\n</tool_call>", "", [("weather", PARIS)]),
        ("hermes", f"I look.\n\n<tool_call>{WEATHER}</tool_call>", "I look.", [("weather", PARIS)]),
        ("hermes", f"<tool_call>\n{WEATHER}\n</tool_call>\n<tool_call>\n{TIME}\n</tool_call>\n", "",
         [("weather", PARIS), ("get_time", "{}")]),
        ("hermes", f"<tool_call>\n{WEATHER}\n{TIME}\n</tool_call>", "",
         [("weather", PARIS), ("get_time", "{}")]),
        ("hermes", f"<tool_call>\n{WEATHER}}}\n</tool_call>", "", [("weather", PARIS)]),
        ("hermes", f"<tool_call>\n{WEATHER[:-1]}\n</tool_call>", "", [("weather", PARIS)]),
        ("hermes", f"<tool_call>\n{WEATHER[:-1]}", "", [("weather", PARIS)]),
        ("hermes", f"<tool_call>\n{WEATHER}\n</tool", "", [("weather", PARIS)]),
        ("hermes", f"<tool_call>\n{WEATHER}", "", [("weather", PARIS)]),
        ("hermes", f"<tools>\n{WEATHER}\n</tools>", "", [("weather", PARIS)]),
        ("hermes", f"```json\n{WEATHER}\n```", "", [("weather", PARIS)]),
        ("hermes", f"Here:\n```json\n{WEATHER}\n```\nDone.", "Here:\nDone.", [("weather", PARIS)]),
        ("hermes", f"<tool_call>{WEATHER}</tool_call> So.", " So.", [("weather", PARIS)]),
        ("hermes", WEATHER, "", [("weather", PARIS)]),
        ("hermes", '<tool_call>{"name": "get_time"}</tool_call>', "", [("get_time", "{}")]),
        ("hermes", '<tool_call>{"name": "get_time", "arguments": null}</tool_call>', "",
         [("get_time", "{}")]),
        ("hermes", '<tool_call>{"arguments": {"name": "x"}, "name": "weather"}</tool_call>', "",
         [("weather", '{"name": "x"}')]),
        ("hermes", '<tool_call>{"name": "weather", "arguments": "{\\"city\\": 1}"}</tool_call>', "",
         [("weather", '{"city": 1}')]),
        ("hermes", '<tool_call>{"name": "weather", "arguments": {"a": "x\ny\t"}}</tool_call>', "",
         [("weather", '{"a": "x\\ny\\t"}')]),
        ("hermes", '<tool_call>{"type": "function", "function": ' + WEATHER + "}</tool_call>", "",
         [("weather", PARIS)]),
        ("llama3", '{"name": "weather", "parameters": {"city": "Paris"}}', "",
         [("weather", PARIS)]),
        ("llama3", '<|python_tag|>{"name": "weather", "parameters": {"city": "Paris"}}; ' + TIME,
         "", [("weather", PARIS), ("get_time", "{}")]),
        ("llama3", '\n{"type": "function", "name": "weather", "parameters": {"city": "Paris"}}', "",
         [("weather", PARIS)]),
        ("mistral", f"[TOOL_CALLS][{WEATHER}, {TIME}]", "",
         [("weather", PARIS), ("get_time", "{}")]),
        ("mistral", f"[TOOL_CALLS] [{WEATHER}]", "", [("weather", PARIS)]),
        ("mistral", f"[TOOL_CALLS]weather[ARGS]{PARIS}", "", [("weather", PARIS)]),
        ("mistral", f"[TOOL_CALLS]weather[CALL_ID]abc[ARGS]{PARIS}[TOOL_CALLS]send.mail{{}}", "",
         [("weather", PARIS), ("send.mail", "{}")]),
        ("json", f"[{WEATHER}, {TIME}]", "", [("weather", PARIS), ("get_time", "{}")]),
        ("json", f"Sure:\n```json\n[{WEATHER}]\n```", "Sure:", [("weather", PARIS)]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("size", [0, 1, 2, 7])
def test_calls_are_read_in_pieces_of_any_size(
    family: str, answer: str, text: str, calls: list[tuple[str, str]], size: int
) -> None:
    assert summary(read(family, answer, size)) == (text, calls)


@pytest.mark.parametrize(
    ("family", "answer"),
    [
        ("hermes", "It is warm in Paris.\n"),
        ("hermes", "  \n"),
        ("hermes", ""),
        ("hermes", "a < b <tool_cal"),
        ("hermes", "<tool_call>"),
        ("hermes", "<tool_call> begins a call.</tool_call>"),
        ("hermes", '<tool_call>{"name": "delete_all", "arguments": {}}</tool_call>'),
        ("hermes", "<tool_call>{'name': 'weather', 'arguments': {}}</tool_call>"),
        ("hermes", '<tool_call>{"name": "weather", "arguments": {\'city\': 1}}</tool_call>'),
        ("hermes", '<tool_call>{"name": "weather", "arguments": [1]}</tool_call>'),
        ("hermes", '<tool_call>{"name": "weather", "arguments": "Paris"}</tool_call>'),
        ("hermes", '<tool_call>{"name": "weather", "argum'),
        ("hermes", '<tool_call>{"name": "weather"'),
        ("hermes", '{"name": "weather", "unit": "C"}'),
        ("hermes", '```json\n{"name": "Ann", "age": 3}\n```\n'),
        ("hermes", "```python\nprint({})\n```"),
        ("hermes", "```\n{}\n```"),
        ("hermes", "[1, 2, {}]"),
        ("hermes", f"The call is {WEATHER}"),
        ("llama3", "<|python_tag|>print(1)"),
        ("mistral", "[TOOL_CALLS]nothing[ARGS]{}"),
        ("mistral", "[TOOL_CALLS]" + "x" * 300),
        ("json", "{" + '"name": "weather", "arguments": ' + "[" * 5000),
    ],
)  # fmt: skip
@pytest.mark.parametrize("size", [0, 1, 3])
def test_what_is_no_call_stays_text_as_it_is(family: str, answer: str, size: int) -> None:
    assert summary(read(family, answer, size)) == (answer, [])


@pytest.mark.parametrize(
    "end",
    ["", "</tool_call>", ": 1, 2}}</tool_call> So.", '": x}}</tool_call><tool', '": tru}}'],
)
@pytest.mark.parametrize("size", [0, 1, 3])
def test_a_call_that_breaks_off_is_text(end: str, size: int) -> None:
    answer = 'I ask. <tool_call>{"name": "weather", "arguments": {"city' + end
    assert summary(read("hermes", answer, size)) == (answer, [])


def test_what_was_told_of_a_broken_call_goes_on_as_its_arguments() -> None:
    answer = '<tool_call>{"name": "weather", "arguments": {"a": 1, b}}</tool_call> So.'
    pieces = read("hermes", answer, 1)
    told = "".join(piece.arguments for piece in pieces if isinstance(piece, CallDelta))
    assert told == '{"a": 1, b}}'
    assert CallEnd(0, answer.removesuffix(" So.")) in pieces


def test_arguments_come_before_the_call_has_ended() -> None:
    parser = ToolParser(FAMILIES["hermes"], NAMES)
    assert parser.push('Well. <tool_call>\n{"name": "weather", "arguments": {') == ["Well."]
    first, second = parser.push('"city": "Pa')
    assert isinstance(first, CallDelta) and first.id and first.id.startswith("call_")
    assert (first.name, second) == ("weather", CallDelta(0, '{"city": "Pa'))
    assert parser.push('ris"}') == [CallDelta(0, 'ris"}')]
    assert parser.push("}\n</tool_call>") == [CallEnd(0)]
    assert parser.calls == 1


def test_ids_are_unique_and_of_the_length_that_a_template_wants() -> None:
    ids = [p.id for p in read("mistral", f"[TOOL_CALLS][{WEATHER},{WEATHER},{TIME}]")
           if isinstance(p, CallDelta) and p.id]  # fmt: skip
    assert len(set(ids)) == 3 and all(len(i) == 9 and i.isalnum() for i in ids)


def test_a_single_call_ends_the_answer() -> None:
    answer = f"<tool_call>{WEATHER}</tool_call><tool_call>{TIME}</tool_call> and more"
    assert summary(read("hermes", answer, 3, single=True)) == ("", [("weather", PARIS)])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)  # fmt: skip


@given(st.dictionaries(st.text(max_size=5), JSON, max_size=4), st.booleans(), st.integers(1, 9))
def test_any_arguments_arrive_as_they_are(value: dict[str, Any], ascii: bool, size: int) -> None:
    call = json.dumps({"name": "weather", "arguments": value}, ensure_ascii=ascii)
    for family, opening in [("hermes", "<tool_call>"), ("mistral", "[TOOL_CALLS]"), ("json", "")]:
        text, ((name, arguments),) = summary(read(family, opening + call, size))
        assert (text, name, json.loads(arguments)) == ("", "weather", value)


PARTS = st.sampled_from(
    ["<tool_call>", "</tool_call>", "```json\n", "```", "[TOOL_CALLS]", "[ARGS]", "weather", "{",
     "}", '"name"', ":", '"weather"', '"arguments"', ",", "\n", " ", "[", "]", "\\", '"', "text",
     "<", "1", "{}", WEATHER]
)  # fmt: skip


@given(st.sampled_from([*FAMILIES]), st.lists(PARTS, max_size=12), st.integers(1, 5))
def test_any_answer_is_the_same_whole_and_in_pieces(
    family: str, parts: list[str], size: int
) -> None:
    answer = "".join(parts)
    text, calls = summary(read(family, answer, size))
    assert (text, calls) == summary(read(family, answer))
    assert all(isinstance(json.loads(arguments), dict) for _, arguments in calls)
    if not calls:
        assert text == answer
