"""The scripted upstream answers as the clients of its APIs expect."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from tests.conformance.upstream.answers import (
    ADDRESS,
    CARD,
    GREETING,
    SECRET,
    contact,
    mail_arguments,
    sentence,
)
from tests.conformance.upstream.stub import MODEL, RETRY_AFTER, UPSTREAM_KEY, VECTOR, Stub, dumped
from tests.server.proxy.stand import served

ASK = f"Write to {ADDRESS} about {CARD}."
TOOL = {"name": "send_mail", "parameters": {"type": "object"}}
HEADERS = {"authorization": f"Bearer {UPSTREAM_KEY}"}


@pytest.fixture
def stub() -> Iterator[tuple[Stub, str]]:
    stub = Stub()
    with served(stub.app) as port:
        yield stub, f"http://127.0.0.1:{port}/v1"


def client_of(url: str, key: str = UPSTREAM_KEY) -> openai.OpenAI:
    return openai.OpenAI(base_url=url, api_key=key, max_retries=0, timeout=10)


def messages(text: str = ASK) -> list[Any]:
    return [{"role": "user", "content": text}]


@pytest.mark.parametrize(
    ("script", "text"), [("greet", GREETING), ("repeat", sentence(ADDRESS, CARD))]
)
def test_texts_are_the_same_whole_and_streamed(
    stub: tuple[Stub, str], script: str, text: str
) -> None:
    stub[0].play(script)
    client = client_of(stub[1])
    whole = client.chat.completions.create(model=MODEL, messages=messages())
    assert whole.choices[0].message.content == text
    with client.chat.completions.stream(model=MODEL, messages=messages()) as stream:
        assert stream.get_final_completion().choices[0].message.content == text
    assert client.responses.create(model=MODEL, input=ASK).output_text == text
    with client.responses.stream(model=MODEL, input=ASK) as answer:
        assert answer.get_final_response().output_text == text
    assert dumped(stub[0].requests).count(ADDRESS) == 4


def test_placeholders_are_repeated_as_they_came(stub: tuple[Stub, str]) -> None:
    stub[0].play("repeat")
    asked = messages("To [EMAIL_1] about [CREDIT_CARD_2]")
    whole = client_of(stub[1]).chat.completions.create(model=MODEL, messages=asked)
    assert whole.choices[0].message.content == sentence("[EMAIL_1]", "[CREDIT_CARD_2]")


def test_a_function_is_called_until_its_result_is_there(stub: tuple[Stub, str]) -> None:
    stub[0].play("call")
    client, tools = client_of(stub[1]), [{"type": "function", "function": TOOL}]
    with client.chat.completions.stream(model=MODEL, messages=messages(), tools=tools) as stream:
        message = stream.get_final_completion().choices[0].message
    arguments = message.tool_calls[0].function.arguments
    assert json.loads(arguments) == mail_arguments(ADDRESS, CARD)
    result = {"role": "tool", "tool_call_id": "call_1", "content": "sent"}
    called = {"role": "assistant", "tool_calls": message.model_dump()["tool_calls"]}
    turns = [*messages(), called, result]
    answer = client.chat.completions.create(model=MODEL, messages=turns, tools=tools)
    assert answer.choices[0].message.content == sentence(ADDRESS, CARD)


def test_objects_come_as_text_or_through_a_function(stub: tuple[Stub, str]) -> None:
    stub[0].play("object")
    client, right = client_of(stub[1]), contact(ADDRESS, CARD)
    form = {"type": "json_object"}
    text = client.chat.completions.create(model=MODEL, messages=messages(), response_format=form)
    assert json.loads(text.choices[0].message.content) == right
    response = client.responses.create(
        model=MODEL, input=ASK, tools=[{"type": "function", "strict": True, **TOOL}]
    )
    assert json.loads(response.output[0].arguments) == right


@pytest.mark.parametrize("stream", [False, True])
def test_messages_speak_as_anthropic_does(stub: tuple[Stub, str], stream: bool) -> None:
    stub[0].play("call")
    tool = {"name": "send_mail", "input_schema": {"type": "object"}}
    body = {"model": MODEL, "max_tokens": 9, "messages": messages(), "tools": [tool]}
    response = httpx.post(
        f"{stub[1]}/messages", json={**body, "stream": stream}, headers=HEADERS, timeout=10
    )
    if not stream:
        assert response.json()["content"][0]["input"] == mail_arguments(ADDRESS, CARD)
        assert response.json()["stop_reason"] == "tool_use"
        return
    events = [json.loads(line[6:]) for line in response.text.splitlines() if line[:6] == "data: "]
    assert [event["type"] for event in events][:3] == [
        "message_start",
        "content_block_start",
        "ping",
    ]
    deltas = [
        event["delta"]["partial_json"] for event in events if "index" in event and "delta" in event
    ]
    assert json.loads("".join(deltas)) == mail_arguments(ADDRESS, CARD)


def test_errors_embeddings_models_and_keys(stub: tuple[Stub, str]) -> None:
    stub[0].play("429")
    client = client_of(stub[1])
    with pytest.raises(openai.RateLimitError) as limited:
        client.chat.completions.create(model=MODEL, messages=messages())
    assert limited.value.code == "rate_limit_exceeded"
    assert limited.value.response.headers["retry-after"] == RETRY_AFTER
    stub[0].play("broken")
    with pytest.raises(openai.APIError, match="had an error"):
        list(client.chat.completions.create(model=MODEL, messages=messages(), stream=True))
    embedding = client.embeddings.create(model="any", input=["text"])
    assert embedding.data[0].embedding == VECTOR
    assert [model.id for model in client.models.list()] == [MODEL]
    with pytest.raises(openai.AuthenticationError):
        client_of(stub[1], "another").models.list()


def test_it_tells_when_a_client_has_hung_up(stub: tuple[Stub, str]) -> None:
    stub[0].play("endless")
    stream = client_of(stub[1]).chat.completions.create(
        model=MODEL, messages=messages(), stream=True
    )
    next(iter(stream))
    assert not stub[0].hung_up.is_set()
    stream.close()
    assert stub[0].hung_up.wait(5)


def test_the_secret_ends_an_answer(stub: tuple[Stub, str]) -> None:
    stub[0].play("secret")
    answer = client_of(stub[1]).chat.completions.create(model=MODEL, messages=messages())
    assert SECRET in answer.choices[0].message.content
