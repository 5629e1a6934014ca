"""Streamed responses under policies that screen text."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI
from starlette.types import Send

from server.screening.answers.upstream_errors import WITHHELD
from tests.server.proxy.screened import ask, read_stream, screened, streaming
from tests.server.proxy.stand import (
    Upstream,
    UpstreamRequest,
    chat_chunk,
    chat_stream,
    send_chunk,
    send_head,
)


@pytest.mark.parametrize("hold_back", [32, 200])
def test_a_streamed_answer_ends_before_what_is_blocked(tmp_path: Path, hold_back: int) -> None:
    sentence = "it is well known that many people want to hear of the forbidden thing and more"
    upstream = Upstream(chat_stream([f"{word} " for word in sentence.split()]))
    with screened(tmp_path, upstream, screen=f"hold_back_chars = {hold_back}") as proxy:
        response = ask(proxy, "hello", stream=True)
        text, events, ended = read_stream(response)
        assert "forbidden" not in response.text
        assert "it is well known that many people want to hear of the ".startswith(text)
        assert len(text) > 0 or hold_back == 200
        assert events[-1]["choices"][0]["finish_reason"] == "content_filter"
        assert events[-1]["guard"]["outcome"] == "blocked"
        assert ended


def test_of_an_object_that_is_blocked_nothing_leaves(tmp_path: Path) -> None:
    upstream = Upstream(
        chat_stream(['{"well": "', "known " * 60, "and ", "the forbidden thing", '"}'])
    )
    with screened(tmp_path, upstream) as proxy:
        response = ask(proxy, "hello", stream=True, response_format={"type": "json_object"})
        text, events, ended = read_stream(response)
        assert (text, ended) == ("", True)
        assert events[-1]["choices"][0]["finish_reason"] == "content_filter"
        assert read_stream(ask(proxy, "hello", stream=True))[0].startswith('{"well": "known')


def test_openais_client_reads_a_stream_that_was_cut(tmp_path: Path) -> None:
    upstream = Upstream(chat_stream(["well ", "the forbidden ", "thing is", " this"]))
    with screened(tmp_path, upstream) as proxy:
        client = OpenAI(base_url=f"{proxy.url}/v1", api_key="none")
        stream = client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "hi"}], stream=True
        )
        reasons = [event.choices[0].finish_reason for event in stream if event.choices]
        assert reasons[-1] == "content_filter"


def test_the_upstream_is_left_when_a_stream_is_cut(tmp_path: Path) -> None:
    async def endless(request: UpstreamRequest, send: Send) -> None:
        await send_head(send)
        await send_chunk(send, chat_chunk({"content": "the forbidden thing "}))
        while True:
            await send_chunk(send, chat_chunk({"content": "and on "}))
            await asyncio.sleep(0.01)

    upstream = Upstream(endless)
    with screened(tmp_path, upstream) as proxy:
        _, events, ended = read_stream(ask(proxy, "hi", stream=True))
        assert ended
        assert upstream.hung_up.wait(5)


def test_one_choice_is_cut_and_the_other_goes_on(tmp_path: Path) -> None:
    async def two(request: UpstreamRequest, send: Send) -> None:
        await send_head(send)
        for text in ("good ", "day ", "to ", "you"):
            await send_chunk(send, chat_chunk({"content": text}))
            await send_chunk(send, chat_chunk({"content": "forbidden thing "}, index=1))
        await send_chunk(send, chat_chunk({}, end="stop"))
        await send_chunk(send, chat_chunk({}, index=1, end="stop"))
        await send_chunk(send, b"data: [DONE]\n\n", more=False)

    with screened(tmp_path, Upstream(two), screen="hold_back_chars = 32") as proxy:
        text, events, ended = read_stream(ask(proxy, "hi", stream=True, n=2))
        assert text == "good day to you"
        ends = {
            c["index"]: c["finish_reason"]
            for e in events
            for c in e["choices"]
            if c["finish_reason"]
        }
        assert ends == {0: "stop", 1: "content_filter"}
        assert ended


def test_placeholders_are_put_back_into_a_stream_however_it_is_cut(tmp_path: Path) -> None:
    upstream = Upstream(chat_stream(["to [EM", "AIL", "_1", "] it", " goes ", "[EMAIL_", "9]"]))
    with screened(tmp_path, upstream, "redact", 'restore = true\nlook = ["user"]') as proxy:
        text, _, ended = read_stream(ask(proxy, "joe@home.com", stream=True))
        assert text == "to joe@home.com it goes [EMAIL_9]"
        assert ended


def test_a_streamed_answer_is_redacted(tmp_path: Path) -> None:
    upstream = Upstream(chat_stream(["mail jo", "e@ho", "me.c", "om or joe@", "home.com", " now"]))
    with screened(tmp_path, upstream, "redact") as proxy:
        text, events, _ = read_stream(ask(proxy, "hello", stream=True))
        assert text == "mail [EMAIL_1] or [EMAIL_1] now"
        assert events[-1]["guard"]["outcome"] == "redacted"


def test_arguments_of_tool_calls_are_read_in_a_stream(tmp_path: Path) -> None:
    async def call(request: UpstreamRequest, send: Send) -> None:
        await send_head(send)
        for part in ('{"to": "joe@', 'home.com"', "}"):
            function = {"index": 0, "function": {"arguments": part}}
            await send_chunk(send, chat_chunk({"tool_calls": [function]}))
        await send_chunk(send, chat_chunk({}, end="tool_calls"))
        await send_chunk(send, b"data: [DONE]\n\n", more=False)

    with screened(tmp_path, Upstream(call), "redact") as proxy:
        response = ask(proxy, "hello", stream=True)
        assert "joe@" not in response.text and "[EMAIL_1]" in response.text


def test_responses_are_read_in_all_that_repeats_them(tmp_path: Path) -> None:
    text = "mail joe@home.com now"

    async def respond(request: UpstreamRequest, send: Send) -> None:
        await send_head(send)
        part = {"type": "output_text", "text": text, "annotations": []}
        item = {"id": "i", "type": "message", "role": "assistant", "content": [part]}
        base = {"id": "r", "object": "response", "model": "m", "status": "in_progress"}
        events: list[dict[str, Any]] = [
            {"type": "response.created", "response": {**base, "output": []}},
            *(
                {
                    "type": "response.output_text.delta",
                    "item_id": "i",
                    "output_index": 0,
                    "content_index": 0,
                    "delta": text[at : at + 4],
                }
                for at in range(0, len(text), 4)
            ),
            {"type": "response.output_text.done", "item_id": "i", "text": text},
            {"type": "response.output_item.done", "item": item},
            {"type": "response.completed", "response": {**base, "output": [item]}},
        ]
        for number, event in enumerate(events):
            data = json.dumps({**event, "sequence_number": number})
            await send_chunk(send, f"event: {event['type']}\ndata: {data}\n\n".encode())
        await send_chunk(send, b"", more=False)

    with screened(tmp_path, Upstream(respond), "redact") as proxy:
        client = OpenAI(base_url=f"{proxy.url}/v1", api_key="none")
        events = list(client.responses.create(model="m", input="hello", stream=True))
        deltas = [e.delta for e in events if e.type == "response.output_text.delta"]
        assert "".join(deltas) == "mail [EMAIL_1] now"
        last = events[-1]
        assert last.type == "response.completed"
        assert last.response.output_text == "mail [EMAIL_1] now"
        assert "joe@" not in str(events)
    with screened(tmp_path, Upstream(respond), "block") as proxy:
        client = OpenAI(base_url=f"{proxy.url}/v1", api_key="none")
        events = list(client.responses.create(model="m", input="hello", stream=True))
        assert events[-1].type == "response.incomplete"
        assert events[-1].response.incomplete_details.reason == "content_filter"
        assert "joe@" not in str(events)


def test_messages_of_anthropics_are_read(tmp_path: Path) -> None:
    async def respond(request: UpstreamRequest, send: Send) -> None:
        await send_head(send)
        events: list[dict[str, Any]] = [
            {"type": "message_start", "message": {"id": "m", "type": "message", "content": []}},
            {
                "type": "content_block_start",
                "index": 0,
                "content_block": {"type": "text", "text": ""},
            },
            *(
                {
                    "type": "content_block_delta",
                    "index": 0,
                    "delta": {"type": "text_delta", "text": text},
                }
                for text in ("the forb", "idden th", "ing")
            ),
            {"type": "content_block_stop", "index": 0},
            {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {}},
            {"type": "message_stop"},
        ]
        for event in events:
            await send_chunk(
                send, f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode()
            )
        await send_chunk(send, b"", more=False)

    with screened(tmp_path, Upstream(respond)) as proxy:
        body = {"model": "m", "max_tokens": 9, "stream": True, "messages": []}
        response = httpx.post(f"{proxy.url}/v1/messages", json=body)
        names = [line[7:] for line in response.text.splitlines() if line.startswith("event: ")]
        assert names[-3:] == ["content_block_stop", "message_delta", "message_stop"]
        assert '"stop_reason":"refusal"' in response.text
        assert "forb" not in response.text


def test_held_text_leaves_after_the_time_that_the_policy_sets(tmp_path: Path) -> None:
    async def slow(request: UpstreamRequest, send: Send) -> None:
        await send_head(send)
        await send_chunk(send, chat_chunk({"content": "hello"}))
        await asyncio.sleep(1.5)
        await send_chunk(send, chat_chunk({}, end="stop"))
        await send_chunk(send, b"data: [DONE]\n\n", more=False)

    with screened(tmp_path, Upstream(slow), screen="hold_back_ms = 100") as proxy:
        body = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "x"}]}
        begun = time.monotonic()
        with httpx.stream("POST", f"{proxy.url}/v1/chat/completions", json=body) as response:
            for line in response.iter_lines():
                if "hello" in line:
                    assert time.monotonic() - begun < 1.0
                    break
            else:
                raise AssertionError("it never came")


def test_words_of_an_error_in_a_stream_that_a_screen_blocks_are_withheld(tmp_path: Path) -> None:
    error = b'data: {"error": {"message": "no forbidden thing", "code": "overloaded"}}\n\n'
    with screened(tmp_path, streaming(chat_chunk({"content": "well"}), error)) as proxy:
        _, events, done = read_stream(ask(proxy, "hi", stream=True))
        assert events[0]["choices"][0]["delta"]["content"] == "well"
        assert events[-1]["error"] == {"message": WITHHELD, "code": "overloaded"}
        assert "forbidden" not in str(events) and done
        assert proxy.audit_lines()[0]["outcome"] == "blocked"
