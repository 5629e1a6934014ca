from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types import chat, completion_create_params

from guard.errors import RequestError
from server.wire.schemas.base import parse_request
from server.wire.schemas.text import ChatRequest, CompletionRequest, TextRequest
from server.wire.strict_json import parse_object

CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
PLAIN: dict[str, Any] = {"model": "m", "prompt": "hi"}
TEXT = st.text("aZ0_ é☃\0\ud83d", max_size=6)
NAME = st.text("aZ0_ é☃\0", max_size=6)
"""Of a member: a half pair in one is refused where the body is read."""
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAME, inner, max_size=3),
    max_leaves=6,
)


def chat_request(**options: Any) -> ChatRequest:
    return parse_request(ChatRequest, CHAT | options)


def refusal(schema: type[TextRequest], body: dict[str, Any]) -> RequestError:
    with pytest.raises(RequestError) as caught:
        parse_request(schema, body)
    return caught.value


@pytest.mark.parametrize(
    ("schema", "params"),
    [
        (ChatRequest, chat.completion_create_params),
        (CompletionRequest, completion_create_params),
    ],
)
def test_every_parameter_of_the_official_client_is_honoured_or_named(
    schema: type[TextRequest], params: Any
) -> None:
    name = "CompletionCreateParamsStreaming"
    official = set(getattr(params, name).__annotations__)
    official |= set(params.CompletionCreateParamsBase.__annotations__)
    known = schema.model_fields.keys() | schema.no_ops.keys()
    assert official <= known
    of_vllm = {"guided_json", "guided_regex", "guided_choice", "structured_outputs", "top_k"}
    of_vllm |= {"min_p", "repetition_penalty", "min_tokens", "stop_token_ids", "ignore_eos"}
    assert known - official - {"response_format"} == {"guard"} | of_vllm
    assert not schema.model_fields.keys() & schema.no_ops.keys()


@pytest.mark.parametrize(
    ("schema", "base"), [(ChatRequest, CHAT), (CompletionRequest, PLAIN)], ids=["chat", "plain"]
)
def test_defaults_of_unsupported_parameters_pass_and_all_else_is_refused(
    schema: type[TextRequest], base: dict[str, Any]
) -> None:
    for name, defaults in schema.no_ops.items():
        for default in (*defaults, None):
            parse_request(schema, base | {name: default})
        error = refusal(schema, base | {name: {"anything": "else"}})
        assert (error.param, error.code) == (name, "unsupported_parameter")


@pytest.mark.parametrize(
    ("name", "value"),
    [("frequency_penalty", False), ("functions", [{"name": "f"}]), ("function_call", "auto"),
     ("modalities", ["text", "audio"]), ("response_format", {"type": "grammar"})],
)  # fmt: skip
def test_values_that_would_change_the_answer_are_refused(name: str, value: Any) -> None:
    assert refusal(ChatRequest, CHAT | {name: value}).param == name


@pytest.mark.parametrize(
    ("name", "value"),
    [("temperature", 2.1), ("temperature", -0.1), ("temperature", "1"), ("temperature", True),
     ("temperature", math.inf), ("temperature", math.nan), ("top_p", 0), ("top_p", 1.5),
     ("n", 0), ("n", 17), ("n", 1.5), ("n", "2"), ("seed", 2**63), ("seed", 1.5),
     ("max_tokens", 0), ("max_completion_tokens", -1), ("stop", ["a"] * 5), ("stop", 7),
     ("logprobs", 1), ("top_logprobs", 21), ("stream", "yes"), ("stream", 1), ("model", 5),
     ("messages", []), ("messages", CHAT["messages"] * 10_001), ("messages", "hi"),
     ("messages", {}), ("guard", "strict"), ("user", 5), ("stream_options", []), ("store", 0),
     ("tools", {}), ("parallel_tool_calls", 1), ("verbosity", 3)],
)  # fmt: skip
def test_wrong_values_are_refused_by_name(name: str, value: Any) -> None:
    assert refusal(ChatRequest, CHAT | {name: value}).param == name


@pytest.mark.parametrize(
    ("message", "param"),
    [({"role": "user"}, "messages[0].content"),
     ({"content": "x"}, "messages[0].role"),
     ({"role": "function", "content": "x"}, "messages[0].role"),
     ({"role": "tool", "content": "x"}, "messages[0].tool_call_id"),
     ({"role": "assistant", "content": None}, "messages[0]"),
     ({"role": "assistant", "content": "x", "function_call": {"name": "f"}}, "messages[0]"),
     ({"role": "user", "content": None}, "messages[0].content"),
     ({"role": "user", "content": []}, "messages[0].content"),
     ({"role": "user", "content": 5}, "messages[0].content"),
     ({"role": "user", "content": [{"type": "image_url"}]}, "messages[0].content[0].image_url"),
     ({"role": "user", "content": [{"type": "file"}]}, "messages[0].content[0]"),
     ({"role": "user", "content": [{"text": "x"}]}, "messages[0].content[0].type"),
     ({"role": "user", "content": [{"type": "text", "text": 5}]}, "messages[0].content[0].text"),
     ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": 5}}]},
      "messages[0].content[0].image_url.url"),
     ({"role": "user", "content": "x", "name": 5}, "messages[0].name"),
     ({"role": "assistant", "content": "x", "tool_calls": [{}]}, "messages[0].tool_calls[0].id"),
     ("hi", "messages[0]"), (None, "messages[0]")],
)  # fmt: skip
def test_wrong_messages_are_refused_by_place(message: Any, param: str) -> None:
    assert refusal(ChatRequest, CHAT | {"messages": [message]}).param == param


@pytest.mark.parametrize(
    ("options", "param"),
    [({"top_logprobs": 1}, "top_logprobs"), ({"stream_options": {}}, "stream_options"),
     ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens"),
     ({"stream": True, "stream_options": {"include_obfuscation": True}},
      "stream_options.include_obfuscation"),
     ({"guard": {}}, "guard.policy"), ({"guard": {"policy": "a", "x": 1}}, "guard.x"),
     ({"stop": [""]}, "stop[0]"), ({"stop": ["a" * 513]}, "stop[0]"),
     ({"metadata": {"a": 1}}, "metadata.a")],
)  # fmt: skip
def test_conflicting_parameters_are_refused(options: dict[str, Any], param: str) -> None:
    assert refusal(ChatRequest, CHAT | options).param == param


def test_unknown_parameters_are_refused_even_when_null() -> None:
    error = refusal(ChatRequest, CHAT | {"top_a": None})
    assert (error.param, error.code) == ("top_a", "unknown_parameter")


def test_missing_parameters_are_named() -> None:
    assert refusal(ChatRequest, {"messages": CHAT["messages"]}).param == "model"
    assert refusal(ChatRequest, CHAT | {"messages": None}).code == "missing_required_parameter"
    assert refusal(CompletionRequest, {"model": "m"}).param == "prompt"


def test_null_stands_for_absent() -> None:
    nulls = dict.fromkeys(ChatRequest.model_fields.keys() - {"model", "messages"})
    assert chat_request(**nulls) == chat_request()


def test_equal_limits_and_whole_numbers_are_accepted() -> None:
    assert chat_request(max_tokens=3, max_completion_tokens=3).max_completion_tokens == 3
    assert chat_request(temperature=0).temperature == 0


@given(
    st.dictionaries(st.sampled_from([*ChatRequest.model_fields, "tools", "é"]), JSON, max_size=5)
)
def test_any_chat_body_is_accepted_or_refused_with_a_parameter(body: dict[str, Any]) -> None:
    try:
        parse_request(ChatRequest, body)
    except RequestError as error:
        assert error.status == 400 and error.param


@given(JSON)
def test_any_prompt_is_accepted_or_refused_by_name(prompt: Any) -> None:
    try:
        parse_request(CompletionRequest, PLAIN | {"prompt": prompt})
    except RequestError as error:
        assert error.param == "prompt"


@given(st.binary(max_size=64))
def test_any_bytes_are_an_object_or_a_bad_request(body: bytes) -> None:
    try:
        value = parse_object(body)
    except RequestError as error:
        assert (error.status, error.code) == (400, "invalid_json")
    else:
        assert isinstance(value, dict)


@given(st.dictionaries(TEXT, JSON, max_size=4))
def test_objects_are_read_as_pythons_own_reader_does(value: dict[str, Any]) -> None:
    text = json.dumps(value)
    if "NaN" in text or "Infinity" in text:
        return
    try:
        assert parse_object(text.encode()) == json.loads(text)
    except RequestError:
        assert "\\ud" in text  # half a surrogate pair, which Python lets pass


@pytest.mark.parametrize(
    "body",
    [b"", b"null", b"[]", b"{", b"{} x", b'{"a":NaN}', b'{"a":Infinity}', b'{"a":-Infinity}',
     b'{"a":"\xff"}', b"\xff\xfe{}", b'{"a":"\\ud800"}', b'{"a":' + b"[" * 5000, b"1" * 5000,
     b'{"a":' * 300 + b"1" + b"}" * 300],
)  # fmt: skip
def test_hostile_bodies_are_bad_requests(body: bytes) -> None:
    with pytest.raises(RequestError):
        parse_object(body)
