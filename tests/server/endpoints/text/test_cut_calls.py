"""Answers with calls that a guard ends: nothing of them is to be carried out."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai.lib.streaming.chat import ChatCompletionStreamState

from tests.server.endpoints.text.test_messages import events_of
from tests.server.endpoints.text.test_tools import chat, message, respond
from tests.server.fake_service import SAID
from tests.server.live_server import LiveServer

FORCED: Any = {"type": "function", "function": {"name": "weather"}}


def chat_streamed(live: LiveServer, text: str, **options: Any) -> Any:
    state = ChatCompletionStreamState()
    for chunk in chat(live, text, stream=True, **options):
        state.handle_chunk(chunk)
    return state.get_final_completion().choices[0]


@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize(
    ("text", "before"),
    [("call, then said", ""), ("said in a call", ""), ("said before a call", "Well.")],
)
def test_the_policy_s_message_is_text_and_no_call(
    live: LiveServer, text: str, before: str, parallel: bool
) -> None:
    options = {} if parallel else {"parallel_tool_calls": False}
    whole = chat(live, text, **options).choices[0]
    assert (whole.finish_reason, whole.message.tool_calls) == ("stop", None)
    assert whole.message.content == before + SAID
    streamed = chat_streamed(live, text, **options)
    assert (streamed.finish_reason, streamed.message.content) == ("stop", before + SAID)
    # the arguments that have left are the model's alone
    for call in streamed.message.tool_calls or ():
        assert '{"city": "Paris"}'.startswith(call.function.arguments)


@pytest.mark.parametrize("text", ["call, then said", "said in a call"])
def test_the_other_apis_say_the_message_too(live: LiveServer, text: str) -> None:
    body = message(live, text).json()
    assert (body["stop_reason"], body["content"]) == ("end_turn", [{"type": "text", "text": SAID}])
    events = events_of(message(live, text, stream=True))
    assert events[-2]["delta"]["stop_reason"] == "end_turn"
    texts = [e["delta"].get("text", "") for e in events if e["type"] == "content_block_delta"]
    assert "".join(texts) == SAID
    assert respond(live, text).output_text == SAID
    last = list(respond(live, text, stream=True))[-1].response
    assert (last.status, last.output_text) == ("completed", SAID)


@pytest.mark.parametrize("text", ["cut at once", "cut in arguments"])
def test_nothing_of_a_begun_call_is_text_of_a_cut_answer(live: LiveServer, text: str) -> None:
    for chunk in chat(live, text, stream=True, tool_choice=FORCED):
        assert "weather" not in (chunk.choices[0].delta.content or "")
    choice = {"type": "function", "name": "weather"}
    last = list(respond(live, text, stream=True, tool_choice=choice))[-1].response
    assert last.output_text == ""
    tool = {"type": "tool", "name": "weather"}
    events = events_of(message(live, text, stream=True, tool_choice=tool))
    deltas = [e["delta"] for e in events if e["type"] == "content_block_delta"]
    assert "".join(delta.get("text", "") for delta in deltas) == ""
    body = message(live, text, tool_choice=tool).json()
    assert body["stop_reason"] == "refusal" and "weather" not in json.dumps(body["content"])
