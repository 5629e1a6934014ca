"""Tools in the three APIs for chats: what reaches the model, and how its calls come back."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import httpx
import openai
import pytest
from openai.lib.streaming.chat import ChatCompletionStreamState

from tests.server.endpoints.text.test_messages import events_of
from tests.server.live_server import Launch, LiveServer

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
CHAT_TOOLS: Any = [
    {"type": "function", "function": {"name": name, "description": "d", "parameters": SCHEMA}}
    for name in ("weather", "get_time")
]
RESPONSES_TOOLS: Any = [
    {"type": "function", "name": name, "description": "d", "parameters": SCHEMA, "strict": False}
    for name in ("weather", "get_time")
]
MESSAGES_TOOLS: Any = [
    {"name": name, "description": "d", "input_schema": SCHEMA} for name in ("weather", "get_time")
]
PARIS = {"city": "Paris"}


def chat(live: LiveServer, text: str = "call", **options: Any) -> Any:
    messages: Any = [{"role": "user", "content": text}]
    return live.client().chat.completions.create(
        **{"model": "fake", "messages": messages, "tools": CHAT_TOOLS, **options}
    )


def respond(live: LiveServer, text: Any = "call", **options: Any) -> Any:
    return live.client().responses.create(
        **{"model": "fake", "input": text, "tools": RESPONSES_TOOLS, **options}
    )


def message(live: LiveServer, text: Any = "call", **options: Any) -> httpx.Response:
    body = {"model": "fake", "max_tokens": 99, "messages": [{"role": "user", "content": text}]}
    return live.post("/v1/messages", json={**body, "tools": MESSAGES_TOOLS, **options})


def test_a_chat_answers_with_calls(live: LiveServer) -> None:
    choice = chat(live).choices[0]
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", "I look.")
    (call,) = choice.message.tool_calls
    assert (call.type, call.function.name) == ("function", "weather")
    assert json.loads(call.function.arguments) == PARIS
    choice = chat(live, "two calls").choices[0]
    assert choice.message.content is None
    assert [call.function.name for call in choice.message.tool_calls] == ["weather", "get_time"]
    assert len({call.id for call in choice.message.tool_calls}) == 2
    assert (
        len(chat(live, "two calls", parallel_tool_calls=False).choices[0].message.tool_calls) == 1
    )


def test_an_answer_ends_with_the_one_call_that_is_wanted(live: LiveServer) -> None:
    whole = chat(live, "call, then more", parallel_tool_calls=False)
    assert whole.choices[0].finish_reason == "tool_calls"
    assert whole.usage.completion_tokens < 20
    more = chat(live, "call, then more")
    assert (more.choices[0].finish_reason, more.usage.completion_tokens) == ("tool_calls", 201)


def test_a_streamed_chat_gives_calls_in_pieces(live: LiveServer) -> None:
    for text in ("call", "two calls"):
        chunks = list(chat(live, text, stream=True))
        state = ChatCompletionStreamState()
        for chunk in chunks:
            state.handle_chunk(chunk)
        whole = chat(live, text).choices[0]
        streamed = state.get_final_completion().choices[0]
        assert streamed.finish_reason == whole.finish_reason == "tool_calls"
        assert (streamed.message.content or None) == whole.message.content
        assert [c.function.arguments for c in streamed.message.tool_calls or ()] == [
            c.function.arguments for c in whole.message.tool_calls
        ]
    pieces = [c.choices[0].delta.tool_calls[0].function.arguments
              for c in chat(live, stream=True) if c.choices[0].delta.tool_calls]  # fmt: skip
    assert pieces == ["", '{"city": "Pa', 'ris"}']


def test_a_response_has_items_of_calls(live: LiveServer) -> None:
    said, call = respond(live).output
    assert (said.type, said.content[0].text) == ("message", "I look.")
    assert (call.type, call.name, call.status) == ("function_call", "weather", "completed")
    assert json.loads(call.arguments) == PARIS and call.call_id and call.id != call.call_id
    assert [item.type for item in respond(live, "two calls").output] == 2 * ["function_call"]


def test_a_streamed_response_has_the_events_of_calls(live: LiveServer) -> None:
    events = list(respond(live, stream=True))
    assert [event.type.removeprefix("response.") for event in events] == [
        *("created", "in_progress"),
        *("output_item.added", "content_part.added", "output_text.delta"),
        *("output_text.done", "content_part.done", "output_item.done", "output_item.added"),
        *("function_call_arguments.delta", "function_call_arguments.delta"),
        *("function_call_arguments.done", "output_item.done", "completed"),
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[-2].item == events[-1].response.output[1]
    assert events[-3].arguments == '{"city": "Paris"}' == events[-2].item.arguments
    assert {event.output_index for event in events[8:-1]} == {1}
    with live.client().responses.stream(
        model="fake", input="two calls", tools=RESPONSES_TOOLS
    ) as stream:
        names = [item.name for item in stream.get_final_response().output]  # type: ignore[union-attr]
    assert names == ["weather", "get_time"]


def test_a_message_has_blocks_of_calls(live: LiveServer) -> None:
    body = message(live).json()
    said, call = body["content"]
    assert (said["text"], body["stop_reason"]) == ("I look.", "tool_use")
    assert (call["type"], call["name"], call["input"]) == ("tool_use", "weather", PARIS)
    assert call["id"]
    single = {"type": "auto", "disable_parallel_tool_use": True}
    assert len(message(live, "two calls").json()["content"]) == 2
    assert len(message(live, "two calls", tool_choice=single).json()["content"]) == 1


def test_a_streamed_message_has_the_events_of_calls(live: LiveServer) -> None:
    events = events_of(message(live, stream=True))
    shown = [(e["type"].removeprefix("content_block_"), e.get("index")) for e in events]
    assert shown == [
        ("message_start", None),
        *[("start", 0), ("delta", 0), ("stop", 0)],
        *[("start", 1), ("delta", 1), ("delta", 1), ("stop", 1)],
        *[("message_delta", None), ("message_stop", None)],
    ]
    assert events[4]["content_block"]["input"] == {}
    parts = [e["delta"]["partial_json"] for e in events[5:7]]
    assert json.loads("".join(parts)) == PARIS
    assert events[-2]["delta"]["stop_reason"] == "tool_use"


def test_definitions_reach_the_model_in_one_form(live: LiveServer) -> None:
    chat(live)
    respond(live)
    message(live)
    first, *others = (tools for tools in live.service.offered[-3:] if tools)
    assert first.definitions == tuple(CHAT_TOOLS)
    assert first.names == {"weather", "get_time"}
    assert others == [first, first]


@pytest.mark.parametrize(
    ("choice", "names", "needs_call"),
    [
        ("auto", {"weather", "get_time"}, False),
        ("required", {"weather", "get_time"}, True),
        ("weather", {"weather"}, True),
        ("none", None, False),
    ],
)
def test_the_choice_reaches_the_model(
    live: LiveServer, choice: str, names: set[str] | None, needs_call: bool
) -> None:
    is_name = choice == "weather"
    chat(
        live,
        tool_choice={"type": "function", "function": {"name": choice}} if is_name else choice,
    )
    respond(live, tool_choice={"type": "function", "name": choice} if is_name else choice)
    words = {"type": "any" if choice == "required" else choice}
    message(live, tool_choice={"type": "tool", "name": choice} if is_name else words)
    for tools in live.service.offered[-3:]:
        assert (tools and tools.names) == names
        assert (tools is not None and tools.choice == "required") is needs_call


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_must_be_a_call_is_its_arguments(live: LiveServer, stream: bool) -> None:
    named: Any = {"type": "function", "function": {"name": "weather"}}
    answer = chat(live, "arguments", tool_choice=named, stream=stream)
    if stream:
        state = ChatCompletionStreamState()
        for chunk in answer:
            state.handle_chunk(chunk)
        answer = state.get_final_completion()
    choice = answer.choices[0]
    assert (choice.finish_reason, choice.message.content or None) == ("tool_calls", None)
    (call,) = choice.message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("weather", PARIS)
    constraint = live.service.submitted[-1].sampling.constraint
    assert constraint is not None and json.loads(constraint.text) == SCHEMA


def test_some_of_the_tools_may_be_allowed(live: LiveServer) -> None:
    named: Any = {"type": "function", "function": {"name": "get_time"}}
    some: Any = {"mode": "auto", "tools": [named]}
    answer = chat(live, tool_choice={"type": "allowed_tools", "allowed_tools": some})
    # a call of another tool is text
    assert "weather" in answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop"
    assert live.service.offered[-1] is not None
    assert len(live.service.offered[-1].definitions) == 2


def test_an_answer_without_tools_is_not_parsed(live: LiveServer) -> None:
    for options in ({"tools": []}, {"tool_choice": "none"}):
        choice = chat(live, **options).choices[0]
        assert "<tool_call>" in choice.message.content and choice.finish_reason == "stop"


def test_calls_that_do_not_parse_are_text(live: LiveServer) -> None:
    unknown = chat(live, "unknown call").choices[0]
    assert (unknown.finish_reason, unknown.message.tool_calls) == ("stop", None)
    assert unknown.message.content == '<tool_call>{"name": "delete_all", "arguments": {}}'
    half = chat(live, "half a call").choices[0]
    assert half.finish_reason == "length" and half.message.content.startswith("<tool_call>")
    body = message(live, "half a call").json()
    assert (body["stop_reason"], len(body["content"])) == ("max_tokens", 1)
    response = respond(live, "half a call")
    assert (response.status, response.output[0].type) == ("incomplete", "message")
    *_, last = respond(live, "half a call", stream=True)
    assert (last.type, last.response.output[0].status) == ("response.incomplete", "incomplete")
    assert not any(e.type.endswith("arguments.done")
                   for e in respond(live, "half a call", stream=True))  # fmt: skip


def test_nothing_of_a_cut_answer_is_to_be_carried_out(live: LiveServer) -> None:
    choice = chat(live, "cut call").choices[0]
    assert (choice.finish_reason, choice.message.tool_calls) == ("content_filter", None)
    assert choice.model_extra["guard"]["outcome"] == "steered"
    body = message(live, "cut call").json()
    assert (body["stop_reason"], body["content"]) == ("refusal", [])
    assert [item.type for item in respond(live, "cut call").output] == ["message"]


CALLS: Any = [
    {"id": "call_1", "type": "function",
     "function": {"name": "weather", "arguments": '{"city": "Paris"}'}},
]  # fmt: skip
TOLD = [
    ("system", "be kind", None, None, None),
    ("user", "hi", None, None, None),
    ("assistant", "I look.", ("call_1", "weather", PARIS), None, "first"),
    ("tool", "warm", None, ("call_1", "weather"), None),
    ("user", "bye", None, None, None),
]


def told(live: LiveServer) -> list[Any]:
    """The messages of the last chat, in short."""
    return [
        (
            m["role"],
            m["content"],
            next(((c["id"], *c["function"].values()) for c in m.get("tool_calls", ())), None),
            (m["tool_call_id"], m["name"]) if "tool_call_id" in m else None,
            m.get("reasoning_content"),
        )
        for m in live.service.chats[-1]
    ]


def test_earlier_calls_reach_the_template_from_each_api(live: LiveServer) -> None:
    chat(live, messages=[
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "I look.", "tool_calls": CALLS, "refusal": None,
         "reasoning_content": "first", "annotations": [], "audio": None, "function_call": None},
        {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "warm"}]},
        {"role": "user", "content": "bye"},
    ])  # fmt: skip
    assert told(live) == TOLD
    respond(live, instructions="be kind", text=[
        {"role": "user", "content": "hi"},
        {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": None,
         "content": [{"type": "reasoning_text", "text": "first"}], "status": "completed"},
        {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed",
         "content": [{"type": "output_text", "text": "I look.", "annotations": []}]},
        {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "weather",
         "arguments": '{"city": "Paris"}', "status": "completed", "namespace": None,
         "parsed_arguments": None},
        {"type": "function_call_output", "call_id": "call_1", "output": "warm"},
        {"role": "user", "content": "bye"},
    ])  # fmt: skip
    assert told(live) == TOLD
    cached = {"type": "ephemeral"}
    message(live, system=[{"type": "text", "text": "be kind", "cache_control": cached}], messages=[
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "first", "signature": "x"},
            {"type": "redacted_thinking", "data": "x"},
            {"type": "text", "text": "I look.", "citations": None},
            {"type": "tool_use", "id": "call_1", "name": "weather", "input": PARIS,
             "caller": None, "toolset_name": None}]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "call_1", "cache_control": cached,
             "content": [{"type": "text", "text": "warm"}]},
            {"type": "text", "text": "bye"}]},
    ])  # fmt: skip
    assert told(live) == TOLD


def test_answers_with_calls_can_be_sent_back(live: LiveServer) -> None:
    answer = chat(live).choices[0].message
    call = answer.tool_calls[0]
    result = {"role": "tool", "tool_call_id": call.id, "content": "warm"}
    assert chat(live, messages=[answer.model_dump(), result]).choices[0].message.content
    output = [item.model_dump() for item in respond(live).output]
    result = {"type": "function_call_output", "call_id": output[-1]["call_id"], "output": "warm"}
    assert respond(live, [{"role": "user", "content": "x"}, *output, result]).output
    content = message(live).json()["content"]
    block = {"type": "tool_result", "tool_use_id": content[-1]["id"], "is_error": False}
    asked = [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": content},
        {"role": "user", "content": [block]},
    ]
    assert message(live, messages=asked).status_code == 200


def test_arguments_that_are_no_json_are_sent_back_as_text(live: LiveServer) -> None:
    broken = [{**CALLS[0], "function": {"name": "weather", "arguments": '{"city": Par'}}]
    said = {"role": "assistant", "content": None, "tool_calls": broken}
    chat(live, messages=[said, {"role": "tool", "tool_call_id": "call_1", "content": "no JSON"}])
    call = live.service.chats[-1][0]["tool_calls"][0]
    assert call["function"]["arguments"] == '{"city": Par'


def test_tokens_of_tools_are_counted(live: LiveServer) -> None:
    body = {"model": "fake", "messages": [{"role": "user", "content": "abcd"}]}
    counted = live.post("/v1/messages/count_tokens", json={**body, "tools": MESSAGES_TOOLS})
    assert counted.json() == {"input_tokens": 4}
    assert live.service.offered[-1] is not None


def test_hints_of_hosted_services_are_taken(live: LiveServer) -> None:
    chat(live, store=True, prompt_cache_key="k", reasoning_effort="low", verbosity="low",
         service_tier="flex", extra_body={"prompt_cache_retention": "24h"},
         prediction={"type": "content", "content": "x"})  # fmt: skip
    answer = respond(live, store=True, include=["reasoning.encrypted_content"],
                     reasoning={"effort": "low", "summary": "auto"}, max_tool_calls=3,
                     service_tier="priority", prompt_cache_key="k")  # fmt: skip
    assert answer.store is False
    thinking = {"type": "enabled", "budget_tokens": 1024}
    assert message(live, thinking=thinking).status_code == 200


def test_a_tool_that_is_chosen_must_be_offered(live: LiveServer) -> None:
    for options in (
        {"tool_choice": {"type": "function", "function": {"name": "nothing"}}},
        {"tool_choice": "required", "tools": []},
    ):
        with pytest.raises(openai.BadRequestError) as caught:
            chat(live, **options)
        assert caught.value.param == "tool_choice"


def test_a_model_says_whether_it_knows_tools(launch: Launch) -> None:
    with launch() as live:
        (model,) = live.client().models.list().data
        assert model.model_extra["guard"]["tools"] == "hermes"  # type: ignore[index]
        live.service.info = replace(live.service.info, tools=None)
        (model,) = live.client().models.list().data
        assert model.model_extra["guard"]["tools"] is None  # type: ignore[index]
