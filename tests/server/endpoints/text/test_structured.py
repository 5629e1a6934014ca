"""Fields that ask for the form of an answer, and refusals in place of parts of one, over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest

from server.endpoints.text.answers import REFUSAL
from steering.constraint import Constraint
from tests.server.endpoints.text.test_messages import events_of
from tests.server.endpoints.text.test_messages import post as post_message
from tests.server.live_server import Launch, LiveServer, settings

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
FORMAT: Any = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}
FLAT: Any = {"type": "json_schema", "name": "answer", "schema": SCHEMA}
MESSAGE = "Ask something else."


@pytest.fixture
def speaking(launch: Launch) -> Iterator[LiveServer]:
    """A server whose policy says something in place of what it blocks."""
    config = settings()
    config["policies"]["strict"]["message"] = MESSAGE
    with launch(config) as live:
        yield live


def asked(live: LiveServer) -> Constraint | None:
    return live.service.submitted[-1].sampling.constraint


@pytest.mark.parametrize(
    ("body", "expected"),
    [({"response_format": FORMAT}, Constraint.json_schema(SCHEMA)),
     ({"response_format": {"type": "json_object"}}, Constraint.json_object()),
     ({"response_format": {"type": "text"}}, None),
     ({"structured_outputs": {"json": SCHEMA}}, Constraint.json_schema(SCHEMA)),
     ({"structured_outputs": {"json_object": True}}, Constraint.json_object()),
     ({"structured_outputs": {"choice": ["a", "b"]}}, Constraint.choice(["a", "b"])),
     ({"structured_outputs": {"regex": "a+"}}, Constraint.regex("a+")),
     ({"guided_json": SCHEMA}, Constraint.json_schema(SCHEMA)),
     ({"guided_regex": "a+"}, Constraint.regex("a+")),
     ({"guided_choice": ["a"]}, Constraint.choice(["a"]))],
)  # fmt: skip
def test_each_name_reaches_the_engine_as_the_same_constraint(
    live: LiveServer, body: dict[str, Any], expected: Constraint | None
) -> None:
    for path, rest in (
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}]}),
        ("/v1/completions", {"prompt": "hi"}),
    ):
        response = live.post(path, json={"model": "fake", **rest, **body})
        assert response.status_code == 200, response.text
        assert asked(live) == expected


def test_responses_and_messages_have_their_own_names(live: LiveServer) -> None:
    answer = live.client().responses.create(
        model="fake", input="hi", text={"format": FLAT, "verbosity": "medium"}
    )
    assert asked(live) == Constraint.json_schema(SCHEMA)
    assert (answer.text is not None) and answer.text.format is not None
    assert answer.text.format.type == "json_schema"
    form = {"type": "json_schema", "schema": SCHEMA}
    for body in ({"output_config": {"format": form}}, {"output_format": form}):
        assert post_message(live, **body).status_code == 200
        assert asked(live) == Constraint.json_schema(SCHEMA)
        counted = live.post(
            "/v1/messages/count_tokens",
            json={"model": "fake", "messages": [{"role": "user", "content": "abc"}], **body},
        )
        assert counted.json()["input_tokens"] == 3


TOOL = {"type": "function", "function": {"name": "look"}}


@pytest.mark.parametrize(
    ("body", "param"),
    [({"response_format": {"type": "grammar"}}, "response_format"),
     ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
     ({"response_format": {"type": "json_schema", "json_schema": {"name": "a b"}}},
      "response_format.json_schema.name"),
     ({"structured_outputs": {}}, "structured_outputs"),
     ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs"),
     ({"structured_outputs": {"grammar": "root ::= x"}}, "structured_outputs.grammar"),
     ({"guided_regex": "a", "response_format": {"type": "json_object"}}, "guided_regex"),
     ({"guided_regex": "a" * 5000}, "guided_regex"), ({"guided_choice": []}, "guided_choice"),
     ({"guided_json": {"enum": ["x" * 70_000]}}, "guided_json"),
     ({"guided_regex": "a", "min_tokens": 3}, "min_tokens"),
     ({"guided_regex": "a", "ignore_eos": True}, "ignore_eos"),
     ({"min_tokens": 5, "max_tokens": 4}, "min_tokens"),
     ({"top_k": -2}, "top_k"), ({"top_k": 2**31}, "top_k"), ({"min_p": 1.1}, "min_p"),
     ({"min_tokens": 10**300}, "min_tokens"), ({"min_tokens": 5000}, "min_tokens"),
     ({"min_tokens": 5, "max_completion_tokens": 4}, "min_tokens"),
     ({"tools": [TOOL], "tool_choice": "required", "min_tokens": 3}, "min_tokens"),
     ({"tools": [TOOL], "tool_choice": "required", "ignore_eos": True}, "ignore_eos"),
     ({"presence_penalty": -3}, "presence_penalty"),
     ({"repetition_penalty": 0}, "repetition_penalty"),
     ({"stop_token_ids": [-1]}, "stop_token_ids[0]"),
     ({"logit_bias": {"x": 1}}, "logit_bias.x"), ({"logit_bias": {"5": 101}}, "logit_bias.5"),
     ({"logit_bias": {str(i): 1 for i in range(1025)}}, "logit_bias")],
)  # fmt: skip
def test_what_cannot_be_is_refused_by_name(
    live: LiveServer, body: dict[str, Any], param: str
) -> None:
    response = live.chat(**body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)
    assert not live.service.submitted


def test_the_sampling_fields_reach_the_service(live: LiveServer) -> None:
    body = {"top_k": 5, "min_p": 0.1, "frequency_penalty": 1, "presence_penalty": -1,
            "repetition_penalty": 1.2, "logit_bias": {"7": -100, "9": 0.5}, "min_tokens": 2,
            "stop_token_ids": [3], "ignore_eos": True}  # fmt: skip
    assert live.chat(**body).status_code == 200
    options = live.service.submitted[0].sampling.options
    biases = body.pop("logit_bias"), options.logit_bias
    assert biases == ({"7": -100, "9": 0.5}, ((7, -100.0), (9, 0.5)))
    for name, value in body.items():
        got = getattr(options, name)
        assert (list(got) if isinstance(got, tuple) else got) == value, name
    assert post_message(live, top_k=9).status_code == 200
    assert live.service.submitted[1].sampling.options.top_k == 9


@pytest.mark.parametrize("policy", ["none", "strict"])
def test_a_blocked_answer_of_a_given_form_is_a_refusal(speaking: LiveServer, policy: str) -> None:
    """`cut` ends with `content_filter` behind words that are no valid answer."""
    words = MESSAGE if policy == "strict" else REFUSAL
    create = speaking.client().chat.completions.create
    options: Any = {
        "model": "fake",
        "messages": [{"role": "user", "content": "cut"}],
        "response_format": FORMAT,
        "extra_body": {"guard": {"policy": policy}},
    }
    (choice,) = create(**options).choices
    assert (choice.message.content, choice.message.refusal) == (None, words)
    assert choice.finish_reason == "content_filter"
    last = [chunk.choices[0] for chunk in create(stream=True, **options)][-1]
    assert (last.delta.refusal, last.finish_reason) == (words, "content_filter")
    with pytest.raises(openai.ContentFilterFinishReasonError):
        speaking.client().chat.completions.parse(**options)


def test_a_blocked_response_of_a_given_form_is_a_refusal(speaking: LiveServer) -> None:
    create = speaking.client().responses.create
    options: Any = {"model": "fake", "input": "cut", "text": {"format": FLAT}}
    answer = create(**options)
    assert (answer.status, answer.output_text) == ("incomplete", "")
    assert answer.output[0].content[0].refusal == REFUSAL
    allowed = create(**options | {"input": "hi"})
    assert (allowed.status, allowed.output_text) == ("completed", "Hello there!")


def test_streamed_messages_end_with_refusal(speaking: LiveServer) -> None:
    form = {"type": "json_schema", "schema": SCHEMA}
    events = events_of(post_message(speaking, "cut", stream=True, output_format=form))
    assert events[-2]["delta"]["stop_reason"] == "refusal"
