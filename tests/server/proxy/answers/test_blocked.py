"""Answers that a screen blocks: answered with 200, and ended as each API's content filter does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI
from starlette.types import Send

from tests.server.proxy.answers.api_streams import (
    events_of,
    message_events,
    request,
    response_events,
)
from tests.server.proxy.screened import streaming
from tests.server.proxy.stand import (
    Proxy,
    Upstream,
    UpstreamRequest,
    chat_chunk,
    chat_completion,
    proxied,
    send_response,
    served,
)
from tests.server.screen_configs import EMAIL, screen_config, write_list

BAD = "here is the forbidden thing"
MESSAGE = "I cannot say that."
WHOLE: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": chat_completion(BAD),
    "/v1/completions": {
        "id": "cmpl-1",
        "object": "text_completion",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "text": BAD, "logprobs": None, "finish_reason": "stop"}],
    },
    "/v1/messages": {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": [{"type": "text", "text": BAD}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 3, "output_tokens": 5},
    },
    "/v1/responses": {
        "id": "resp_1",
        "object": "response",
        "created_at": 1,
        "model": "m",
        "status": "completed",
        "output": [
            {
                "id": "msg_1",
                "type": "message",
                "role": "assistant",
                "status": "completed",
                "content": [{"type": "output_text", "text": BAD, "annotations": []}],
            }
        ],
    },
}


def whole(body: dict[str, Any]) -> Upstream:
    async def respond(request: UpstreamRequest, send: Send) -> None:
        await send_response(send, body)

    return Upstream(respond)


@contextmanager
def blocking(
    folder: Path, upstream: Upstream, message: str | None = None, screen: str = ""
) -> Iterator[Proxy]:
    policy = f'message = "{message}"' if message else ""
    text = screen_config("block", screen, source=write_list(folder), policy=policy)
    with served(upstream) as port, proxied(folder, text, port) as proxy:
        yield proxy


def ended(path: str, body: dict[str, Any]) -> tuple[str, Any]:
    """The text of a whole answer, and the word for its end."""
    if path == "/v1/chat/completions":
        (choice,) = body["choices"]
        return choice["message"]["content"], choice["finish_reason"]
    if path == "/v1/completions":
        (choice,) = body["choices"]
        return choice["text"], choice["finish_reason"]
    if path == "/v1/messages":
        return "".join(block["text"] for block in body["content"]), body["stop_reason"]
    texts = [part["text"] for item in body["output"] for part in item["content"]]
    return "".join(texts), (body["status"], body["incomplete_details"]["reason"])


ENDS: dict[str, Any] = {
    "/v1/chat/completions": "content_filter",
    "/v1/completions": "content_filter",
    "/v1/messages": "refusal",
    "/v1/responses": ("incomplete", "content_filter"),
}


@pytest.mark.parametrize("message", [None, MESSAGE])
@pytest.mark.parametrize("path", list(WHOLE))
def test_a_whole_answer(tmp_path: Path, path: str, message: str | None) -> None:
    with blocking(tmp_path, whole(WHOLE[path]), message) as proxy:
        response = request(proxy, path)
        assert response.status_code == 200
        assert response.headers["x-guard-verdict"] == "blocked"
        body = response.json()
        assert ended(path, body) == (message or "", ENDS[path])
        assert "forbidden" not in response.text
        assert body["guard"]["outcome"] == "blocked"
        kept = ("id", "object", "type", "created", "created_at", "model", "usage")
        for name in kept:
            assert body.get(name) == WHOLE[path].get(name)
        assert proxy.audit_lines()[0]["outcome"] == "blocked"


@pytest.mark.parametrize("message", [None, MESSAGE])
def test_openais_client_reads_such_an_answer(tmp_path: Path, message: str | None) -> None:
    with blocking(tmp_path, whole(WHOLE["/v1/responses"]), message) as proxy:
        client = OpenAI(base_url=f"{proxy.url}/v1", api_key="none")
        response = client.responses.create(model="m", input="hi")
        assert response.status == "incomplete"
        assert response.output_text == (message or "")


def test_only_the_choices_with_a_match_end(tmp_path: Path) -> None:
    body = chat_completion("well")
    body["choices"].append({**chat_completion(BAD)["choices"][0], "index": 1})
    spelled = {"content": [{"token": "well", "logprob": -1.0}], "refusal": None}
    body["choices"][0]["logprobs"] = spelled
    with blocking(tmp_path, whole(body), MESSAGE) as proxy:
        first, second = request(proxy, "/v1/chat/completions", n=2).json()["choices"]
        assert first == body["choices"][0]
        assert (second["index"], second["finish_reason"]) == (1, "content_filter")
        assert second["message"] == {"role": "assistant", "content": MESSAGE, "refusal": None}


def test_texts_outside_of_the_choices_end_them_all(tmp_path: Path) -> None:
    body = {**chat_completion("well"), "note": BAD}
    with blocking(tmp_path, whole(body)) as proxy:
        answer = request(proxy, "/v1/chat/completions").json()
        assert "note" not in answer
        assert [choice["finish_reason"] for choice in answer["choices"]] == ["content_filter"]


def test_a_choice_and_another_do_not_add_up_to_a_match(tmp_path: Path) -> None:
    body = chat_completion("the forbidden")
    body["choices"].append({**chat_completion("thing")["choices"][0], "index": 1})
    with blocking(tmp_path, whole(body)) as proxy:
        answer = request(proxy, "/v1/chat/completions", n=2).json()
        assert [choice["finish_reason"] for choice in answer["choices"]] == ["stop", "stop"]


def test_a_match_across_the_strings_of_a_choice_ends_it(tmp_path: Path) -> None:
    body = chat_completion("the forbidden")
    body["choices"][0]["message"]["reasoning_content"] = "thing"
    with blocking(tmp_path, whole(body)) as proxy:
        (choice,) = request(proxy, "/v1/chat/completions").json()["choices"]
        assert choice["finish_reason"] == "content_filter"
        assert choice["message"] == {"role": "assistant", "content": "", "refusal": None}


@pytest.mark.parametrize(
    "text", ["mail [EMAIL_1]: {bad}", '{{"mail": "ann@b.com", "note": "{bad}"}}']
)
@pytest.mark.parametrize("path", list(WHOLE))
def test_what_is_restored_or_redacted_in_a_blocked_answer_does_not_leave(
    tmp_path: Path, path: str, text: str
) -> None:
    body = json.loads(json.dumps(WHOLE[path]).replace(BAD, json.dumps(text.format(bad=BAD))[1:-1]))
    (tmp_path / "words.toml").write_text('[[words]]\nlabel = "BAD"\nwords = ["forbidden thing"]\n')
    (tmp_path / "mails.toml").write_text(f"[[regex]]\nlabel = \"EMAIL\"\npattern = '{EMAIL}'\n")
    mails = '[[patterns]]\nname = "mails"\nsource = "mails.toml"\n'
    screen = 'restore = true\nactions = { list = "block" }'
    config = mails + screen_config("redact", screen, source="words.toml")
    config = config.replace('guards = ["list"]', 'guards = ["mails", "list"]')
    with served(whole(body)) as port, proxied(tmp_path, config, port) as proxy:
        chat = [{"role": "user", "content": "write to ann@example.com"}]
        response = request(proxy, path, messages=chat, input=chat, prompt="to ann@example.com")
        assert ended(path, response.json()) == ("", ENDS[path])
        assert "forbidden" not in response.text


def test_an_answer_that_no_filter_can_end_is_an_error(tmp_path: Path) -> None:
    with blocking(tmp_path, whole({"object": "list", "data": [{"note": BAD}]})) as proxy:
        response = httpx.post(f"{proxy.url}/v1/embeddings", json={"model": "m", "input": "hi"})
        assert response.status_code == 400
        assert response.json()["error"]["code"] == "content_filter"
        assert "forbidden" not in response.text


@pytest.mark.parametrize("message", [None, MESSAGE])
def test_a_streamed_chat(tmp_path: Path, message: str | None) -> None:
    chunks = [chat_chunk({"content": text}) for text in ("x" * 300, " the forbidden ", "thing")]
    with blocking(tmp_path, streaming(*chunks), message) as proxy:
        options = {"include_usage": True}
        response = request(proxy, "/v1/chat/completions", stream=True, stream_options=options)
        *_, (_, last), (_, usage), (_, done) = events_of(response.text)
        (choice,) = last["choices"]
        assert choice["finish_reason"] == "content_filter"
        assert choice["delta"] == ({"content": message} if message else {})
        assert (last["id"], last["object"]) == ("chatcmpl-1", "chat.completion.chunk")
        assert usage["choices"] == [] and usage["usage"]["completion_tokens"] > 0
        assert last["guard"]["outcome"] == usage["guard"]["outcome"] == "blocked"
        assert done == "[DONE]"


def test_a_cut_stream_has_usage_only_where_it_was_asked_for(tmp_path: Path) -> None:
    with blocking(tmp_path, streaming(chat_chunk({"content": BAD}))) as proxy:
        for options in ({}, {"stream_options": {"include_usage": False}}):
            response = request(proxy, "/v1/chat/completions", stream=True, **options)
            assert "usage" not in response.text


def test_usage_chunks_of_an_upstream_carry_the_verdict_too(tmp_path: Path) -> None:
    usage = b'data: {"id":"c","choices":[],"usage":{"completion_tokens":7}}\n\n'
    upstream = streaming(chat_chunk({"content": "well"}), chat_chunk({}, end="stop"), usage)
    with blocking(tmp_path, upstream) as proxy:
        options = {"include_usage": True}
        response = request(proxy, "/v1/chat/completions", stream=True, stream_options=options)
        _, (_, finish), (_, last), _ = events_of(response.text)
        assert finish["guard"]["outcome"] == last["guard"]["outcome"] == "pass"
        assert last["usage"] == {"completion_tokens": 7}


@pytest.mark.parametrize("message", [None, MESSAGE])
def test_a_streamed_message(tmp_path: Path, message: str | None) -> None:
    events = message_events(["y" * 300, " the forbidden ", "thing"])
    with blocking(tmp_path, streaming(*events, done=False), message) as proxy:
        got = events_of(request(proxy, "/v1/messages", stream=True).text)
        assert [name for name, _ in got[-3:]] == [
            "content_block_stop",
            "message_delta",
            "message_stop",
        ]
        assert got[-2][1]["delta"]["stop_reason"] == "refusal"
        assert got[-2][1]["guard"]["outcome"] == "blocked"
        deltas = [event["delta"]["text"] for name, event in got if name == "content_block_delta"]
        assert deltas[-1] == message if message else MESSAGE not in deltas


def test_the_message_of_a_policy_gets_a_block_of_its_own_where_none_is_open(tmp_path: Path) -> None:
    events = message_events([BAD])[:1] + message_events([BAD])[2:]
    with blocking(tmp_path, streaming(*events, done=False), MESSAGE) as proxy:
        got = events_of(request(proxy, "/v1/messages", stream=True).text)
        names = [name for name, _ in got]
        assert names == [
            "message_start",
            "content_block_start",
            "content_block_delta",
            "content_block_stop",
            "message_delta",
            "message_stop",
        ]
        assert got[2][1]["delta"] == {"type": "text_delta", "text": MESSAGE}


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/responses"])
def test_a_stream_whose_first_event_is_blocked_begins_nevertheless(
    tmp_path: Path, path: str
) -> None:
    first = b'data: {"type":"message_start","response":{"id":"r","note":"the forbidden thing"}}\n\n'
    with blocking(tmp_path, streaming(first, done=False), MESSAGE) as proxy:
        response = request(proxy, path, stream=True)
        names = [name for name, _ in events_of(response.text)]
        assert names[0] == {"/v1/messages": "message_start"}.get(path, "response.created")
        assert names[-1] == {"/v1/messages": "message_stop"}.get(path, "response.incomplete")
        assert MESSAGE in response.text and "forbidden" not in response.text


@pytest.mark.parametrize("message", [None, MESSAGE])
def test_a_streamed_response_ends_with_what_was_delivered(
    tmp_path: Path, message: str | None
) -> None:
    events = response_events(["z" * 20] * 20 + [" the forbidden ", "thing"])
    with blocking(tmp_path, streaming(*events, done=False), message) as proxy:
        got = events_of(request(proxy, "/v1/responses", stream=True).text)
        left = "".join(e["delta"] for name, e in got if name == "response.output_text.delta")
        assert left.startswith("z" * 100)
        assert left.endswith(message or "z")
        names = [name for name, _ in got]
        assert names[-4:] == [
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.incomplete",
        ]
        numbers = [event["sequence_number"] for _, event in got]
        assert numbers == sorted(set(numbers))
        last = got[-1][1]["response"]
        assert (last["id"], last["status"]) == ("resp_1", "incomplete")
        (item,) = last["output"]
        assert (item["id"], item["status"]) == ("msg_1", "incomplete")
        assert [part["text"] for part in item["content"]] == [left]
        assert got[-4][1]["text"] == left
        assert got[-1][1]["guard"]["outcome"] == "blocked"
        client = OpenAI(base_url=f"{proxy.url}/v1", api_key="none")
        with client.responses.stream(model="m", input="hi") as stream:
            *_, incomplete = stream
            assert incomplete.type == "response.incomplete"
            assert incomplete.response.output_text == left


def test_the_message_is_that_of_the_error_for_a_blocked_request(tmp_path: Path) -> None:
    with blocking(tmp_path, whole(WHOLE["/v1/messages"]), MESSAGE) as proxy:
        chat = [{"role": "user", "content": "the forbidden thing"}]
        response = request(proxy, "/v1/messages", messages=chat)
        assert response.status_code == 400
        assert response.json()["error"]["message"] == MESSAGE
        response = request(proxy, "/v1/chat/completions", messages=chat)
        assert response.json()["error"]["message"] == MESSAGE
        assert response.json()["error"]["code"] == "content_filter"
