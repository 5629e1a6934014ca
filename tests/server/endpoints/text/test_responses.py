"""`/v1/responses` through OpenAI's own client."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from openai.types.responses import Response, response_create_params

from server.wire.schemas.responses import ResponsesRequest
from tests.server.live_server import Launch, LiveServer, settings

OFFICIAL = response_create_params


def ask(live: LiveServer, given: Any = "hi", **options: Any) -> Response:
    answer = live.client().responses.create(model="fake", input=given, **options)
    assert isinstance(answer, Response)
    return answer


def post(live: LiveServer, **body: Any) -> Any:
    return live.post("/v1/responses", json={"model": "fake", "input": "hi", **body})


def prompt_of(live: LiveServer) -> str:
    return bytes(live.service.submitted[-1].prompt.tokens).decode()


def test_every_parameter_of_the_official_client_is_honoured_or_named() -> None:
    official = set(OFFICIAL.ResponseCreateParamsStreaming.__annotations__)
    official |= set(OFFICIAL.ResponseCreateParamsBase.__annotations__)
    known = ResponsesRequest.model_fields.keys() | ResponsesRequest.no_ops.keys()
    assert official <= known
    assert not ResponsesRequest.model_fields.keys() & ResponsesRequest.no_ops.keys()


def test_the_answer_has_openais_shape_and_the_verdict(live: LiveServer) -> None:
    raw = live.client().responses.with_raw_response.create(
        model="fake",
        input="hi",
        store=False,
        metadata={"a": "b"},
        temperature=0.5,
        max_output_tokens=9,
        extra_body={"guard": {"policy": "strict"}},
    )
    answer = raw.parse()
    assert (answer.object, answer.status, answer.output_text) == (
        "response",
        "completed",
        "Hello there!",
    )
    assert answer.id.startswith("resp_") and answer.output[0].id
    assert (answer.store, answer.metadata) == (False, {"a": "b"})  # type: ignore[attr-defined]
    assert answer.usage is not None
    usage = answer.usage
    assert (usage.input_tokens, usage.output_tokens, usage.total_tokens) == (2, 3, 5)
    (verdict,) = live.verdicts
    assert answer.model_extra is not None
    assert answer.model_extra["guard"]["request_id"] == verdict.request_id
    assert raw.headers["X-Guard-Policy"] == "strict" == verdict.policy
    assert raw.headers["X-Guard-Verdict"] == "pass"
    sampling = live.service.submitted[0].sampling
    assert (sampling.temperature, sampling.max_tokens) == (0.5, 9)


def test_items_and_instructions_reach_the_template(live: LiveServer) -> None:
    first = ask(live)
    ask(
        live,
        [
            {"role": "developer", "content": "be kind"},
            {"role": "user", "content": [{"type": "input_text", "text": "a"}]},
            *[item.model_dump() for item in first.output],
            {"type": "message", "role": "user", "content": "b"},
        ],
        instructions="short",
    )
    assert [(m["role"], m["content"]) for m in live.service.chats[-1]] == [
        ("system", "short"),
        ("system", "be kind"),
        ("user", "a"),
        ("assistant", "Hello there!"),
        ("user", "b"),
    ]


def test_a_stream_has_every_event_in_order(live: LiveServer) -> None:
    events = list(live.client().responses.create(model="fake", input="hi", stream=True))
    assert [event.type for event in events] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        *3 * ["response.output_text.delta"],
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event.sequence_number for event in events] == list(range(11))
    last: Any = events[-1]
    assert last.response.output_text == "Hello there!"
    assert last.response.usage.total_tokens == 5
    assert last.response.id == events[0].response.id  # type: ignore[union-attr]
    (verdict,) = live.verdicts
    assert last.response.guard["request_id"] == verdict.request_id
    with live.client().responses.stream(model="fake", input="hi") as stream:
        assert stream.get_final_response().output_text == "Hello there!"


def test_a_cut_answer_is_incomplete(live: LiveServer) -> None:
    cut = ask(live, "cut")
    assert cut.incomplete_details is not None
    assert (cut.status, cut.incomplete_details.reason) == ("incomplete", "content_filter")
    short = ask(live, max_output_tokens=1)
    assert short.incomplete_details is not None
    assert (short.status, short.output_text) == ("incomplete", "Hello")
    assert short.incomplete_details.reason == "max_output_tokens"
    *_, last = live.client().responses.create(model="fake", input="cut", stream=True)
    assert last.type == "response.incomplete"
    assert last.response.output[0].status == "incomplete"  # type: ignore[union-attr]


def test_what_the_policy_says_stands_for_a_cut_answer(launch: Launch) -> None:
    raw = settings()
    raw["policies"]["strict"]["message"] = "No."
    with launch(raw) as live:
        named = {"extra_body": {"guard": {"policy": "strict"}}}
        assert ask(live, "cut", **named).output_text == "No."
        *_, last = live.client().responses.create(model="fake", input="cut", stream=True, **named)
        assert last.response.output_text.endswith("No.")


def test_a_blocked_prompt_is_a_bad_request(live: LiveServer) -> None:
    for stream in (False, True):
        response = post(live, input="blocked", stream=stream)
        assert response.status_code == 400
        assert response.json()["error"]["code"] == "content_filter"
        assert response.json()["guard"]["outcome"] == "blocked"
        assert response.headers["X-Guard-Verdict"] == "blocked"


def test_a_failed_guard_ends_the_stream_as_failed(live: LiveServer) -> None:
    events = list(live.client().responses.create(model="fake", input="midway", stream=True))
    last: Any = events[-1]
    assert (last.type, last.response.status) == ("response.failed", "failed")
    assert last.response.error.code == "guard_failed"
    assert last.sequence_number == len(events) - 1
    assert last.response.output[0].content[0].text == "Well,"
    assert post(live, input="midway").json()["error"]["code"] == "guard_failed"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"background": True}, "background"),
        ({"tools": [{"type": "web_search"}]}, "tools[0]"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"text": {"format": {"type": "grammar"}}}, "text.format"),
        ({"text": {"format": {"type": "json_schema", "schema": {}}}}, "text.format.name"),
        ({"text": {"verbosity": "loud"}}, "text.verbosity"),
        ({"max_output_tokens": 10_000}, "max_output_tokens"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"input": []}, "input"),
        ({"input": 5}, "input"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role"),
        (
            {"input": [{"type": "function_call_output", "output": "x"}]},
            "input[0].call_id",
        ),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0]"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_file"}]}]},
            "input[0].content[0]",
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]},
            "input[0].content[0]",
        ),
        ({"messages": []}, "messages"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(
    live: LiveServer, body: dict[str, Any], param: str
) -> None:
    response = post(live, **body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)
    assert not live.service.submitted


def test_errors_are_those_of_openais_client(live: LiveServer) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        live.client().responses.create(model="gpt-9", input="x")
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as wrong:
        ask(live, extra_body={"guard": {"policy": "nope"}})
    assert wrong.value.code == "unknown_policy"
