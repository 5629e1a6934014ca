"""Policies that screen text, through a proxy: what the upstream gets, what the client does."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI
from starlette.types import Send

from tests.server.proxy.stand import (
    Got,
    Proxy,
    Upstream,
    begin,
    chat,
    chunk,
    piece,
    proxied,
    reply,
    served,
    spoken,
)

LISTS = """
[[words]]
label = "BAD"
words = ["forbidden thing"]
[[regex]]
label = "EMAIL"
pattern = '[a-z]{1,20}@[a-z]{1,20}\\.com'
"""
POLICY = """
[server]
default_policy = "p"
[[patterns]]
name = "list"
source = "list.toml"
[policies.p]
guards = ["list"]
action = "{action}"
[policies.p.screen]
{screen}
"""


@contextmanager
def standing(
    folder: Path, upstream: Upstream, action: str = "block", screen: str = ""
) -> Iterator[Proxy]:
    """A proxy under one policy, in front of `upstream`."""
    (folder / "list.toml").write_text(LISTS)
    text = POLICY.format(action=action, screen=screen)
    with served(upstream) as port, proxied(folder, text, port) as proxy:
        yield proxy


def said(text: str) -> Upstream:
    async def answer(got: Got, send: Send) -> None:
        await reply(send, chat(text))

    return Upstream(answer)


def ask(proxy: Proxy, text: str, **more: Any) -> httpx.Response:
    body = {"model": "m", "messages": [{"role": "user", "content": text}], **more}
    return httpx.post(f"{proxy.url}/v1/chat/completions", json=body, timeout=20)


def streamed(answer: httpx.Response) -> tuple[str, list[dict[str, Any]], bool]:
    """The text of a streamed chat, its events, and whether it ends as it should."""
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    events = [json.loads(line) for line in lines if line != "[DONE]"]
    deltas = [c["delta"].get("content") or "" for e in events for c in e.get("choices", [])]
    return "".join(deltas), events, lines[-1] == "[DONE]"


def test_a_request_is_blocked_before_the_upstream_sees_it(tmp_path: Path) -> None:
    upstream = said("hello")
    with standing(tmp_path, upstream) as proxy:
        answer = ask(proxy, "tell me of the f0rbidden\u200b thing")
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "content_filter"
        guard = answer.json()["guard"]
        assert guard["outcome"] == "blocked"
        assert guard["guards"][0]["place"] == "messages[0].content"
        assert answer.headers["x-guard-verdict"] == "blocked"
        assert not upstream.got
        (line,) = proxy.lines()
        assert line["outcome"] == "blocked"
        assert line["guards"] == guard["guards"]


def test_silence_leaves_request_and_answer_as_they_are(tmp_path: Path) -> None:
    upstream = said("hello")
    with standing(tmp_path, upstream) as proxy:
        raw = b'{"model":"m", "seed": 1.0, "messages":[{"role":"user","content":"caf\xc3\xa9"}]}'
        answer = httpx.post(
            f"{proxy.url}/v1/chat/completions",
            content=raw,
            headers={"content-type": "application/json"},
        )
        assert upstream.got[0].body == raw
        told = answer.json()
        assert told.pop("guard")["outcome"] == "pass"
        assert told == chat("hello")


def test_an_answer_is_blocked(tmp_path: Path) -> None:
    with standing(tmp_path, said("here is the forbidden thing")) as proxy:
        answer = ask(proxy, "hello")
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "content_filter"
        assert "forbidden" not in answer.text
        (line,) = proxy.lines()
        assert line["outcome"] == "blocked"


@pytest.mark.parametrize("hold_back", [32, 200])
def test_a_streamed_answer_ends_before_what_is_blocked(tmp_path: Path, hold_back: int) -> None:
    told = "it is well known that many people want to hear of the forbidden thing and more"
    upstream = Upstream(spoken([f"{word} " for word in told.split()]))
    with standing(tmp_path, upstream, screen=f"hold_back_chars = {hold_back}") as proxy:
        answer = ask(proxy, "hello", stream=True)
        text, events, ended = streamed(answer)
        assert "forbidden" not in answer.text
        assert "it is well known that many people want to hear of the ".startswith(text)
        assert len(text) > 0 or hold_back == 200
        assert events[-1]["choices"][0]["finish_reason"] == "content_filter"
        assert events[-1]["guard"]["outcome"] == "blocked"
        assert ended


def test_openais_client_reads_a_stream_that_was_cut(tmp_path: Path) -> None:
    upstream = Upstream(spoken(["well ", "the forbidden ", "thing is", " this"]))
    with standing(tmp_path, upstream) as proxy:
        client = OpenAI(base_url=f"{proxy.url}/v1", api_key="none")
        stream = client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "hi"}], stream=True
        )
        reasons = [event.choices[0].finish_reason for event in stream if event.choices]
        assert reasons[-1] == "content_filter"


def test_the_upstream_is_left_when_a_stream_is_cut(tmp_path: Path) -> None:
    async def endless(got: Got, send: Send) -> None:
        await begin(send)
        await piece(send, chunk({"content": "the forbidden thing "}))
        while True:
            await piece(send, chunk({"content": "and on "}))
            await asyncio.sleep(0.01)

    upstream = Upstream(endless)
    with standing(tmp_path, upstream) as proxy:
        _, events, ended = streamed(ask(proxy, "hi", stream=True))
        assert ended
        assert upstream.hung_up.wait(5)


def test_one_choice_is_cut_and_the_other_goes_on(tmp_path: Path) -> None:
    async def two(got: Got, send: Send) -> None:
        await begin(send)
        for text in ("good ", "day ", "to ", "you"):
            await piece(send, chunk({"content": text}))
            await piece(send, chunk({"content": "forbidden thing "}, index=1))
        await piece(send, chunk({}, end="stop"))
        await piece(send, chunk({}, index=1, end="stop"))
        await piece(send, b"data: [DONE]\n\n", more=False)

    with standing(tmp_path, Upstream(two), screen="hold_back_chars = 32") as proxy:
        text, events, ended = streamed(ask(proxy, "hi", stream=True, n=2))
        assert text == "good day to you"
        ends = {
            c["index"]: c["finish_reason"]
            for e in events
            for c in e["choices"]
            if c["finish_reason"]
        }
        assert ends == {0: "stop", 1: "content_filter"}
        assert ended


def test_what_is_cut_out_of_a_request_is_put_back_into_the_answer(tmp_path: Path) -> None:
    async def answer(got: Got, send: Send) -> None:
        content = got.json["messages"][0]["content"]
        await reply(send, chat(f"You wrote: {content}"))

    upstream = Upstream(answer)
    with standing(tmp_path, upstream, "redact", 'restore = true\nlook = ["user"]') as proxy:
        told = ask(proxy, "write to joe@home.com and ann@work.com, then joe@home.com").json()
        asked = upstream.got[0].json["messages"][0]["content"]
        assert asked == "write to [EMAIL_1] and [EMAIL_2], then [EMAIL_1]"
        said = told["choices"][0]["message"]["content"]
        assert said == "You wrote: write to joe@home.com and ann@work.com, then joe@home.com"
        assert told["guard"]["outcome"] == "redacted"
        assert "joe" not in proxy.audit.read_text()


@pytest.mark.parametrize("stream", [False, True])
def test_what_is_cut_out_of_the_answer_itself_stays_out(tmp_path: Path, stream: bool) -> None:
    text = "to [EMAIL_1] and ann@work.com and [EMAIL_2]"
    upstream = Upstream(spoken([text])) if stream else said(text)
    with standing(tmp_path, upstream, "redact", "restore = true") as proxy:
        answer = ask(proxy, "joe@home.com", stream=stream)
        assert "to joe@home.com and [EMAIL_2] and [EMAIL_2]" in answer.text
        assert "ann@" not in answer.text


def test_placeholders_are_put_back_into_a_stream_however_it_is_cut(tmp_path: Path) -> None:
    upstream = Upstream(spoken(["to [EM", "AIL", "_1", "] it", " goes ", "[EMAIL_", "9]"]))
    with standing(tmp_path, upstream, "redact", 'restore = true\nlook = ["user"]') as proxy:
        text, _, ended = streamed(ask(proxy, "joe@home.com", stream=True))
        assert text == "to joe@home.com it goes [EMAIL_9]"
        assert ended


def test_a_streamed_answer_is_redacted(tmp_path: Path) -> None:
    upstream = Upstream(spoken(["mail jo", "e@ho", "me.c", "om or joe@", "home.com", " now"]))
    with standing(tmp_path, upstream, "redact") as proxy:
        text, events, _ = streamed(ask(proxy, "hello", stream=True))
        assert text == "mail [EMAIL_1] or [EMAIL_1] now"
        assert events[-1]["guard"]["outcome"] == "redacted"


def test_arguments_of_tool_calls_are_read_in_a_stream(tmp_path: Path) -> None:
    async def call(got: Got, send: Send) -> None:
        await begin(send)
        for part in ('{"to": "joe@', 'home.com"', "}"):
            function = {"index": 0, "function": {"arguments": part}}
            await piece(send, chunk({"tool_calls": [function]}))
        await piece(send, chunk({}, end="tool_calls"))
        await piece(send, b"data: [DONE]\n\n", more=False)

    with standing(tmp_path, Upstream(call), "redact") as proxy:
        answer = ask(proxy, "hello", stream=True)
        assert "joe@" not in answer.text and "[EMAIL_1]" in answer.text


@pytest.mark.parametrize(("action", "outcome"), [("flag", "flagged"), ("observe", "pass")])
def test_flagging_and_observing_change_nothing_but_the_verdict(
    tmp_path: Path, action: str, outcome: str
) -> None:
    with standing(tmp_path, said("ok"), action) as proxy:
        told = ask(proxy, "the forbidden thing").json()
        assert told["choices"][0]["message"]["content"] == "ok"
        assert told["guard"]["outcome"] == outcome
        assert told["guard"]["guards"][0]["fired"] is True


def test_a_screen_routes_to_another_model(tmp_path: Path) -> None:
    upstream = said("ok")
    with standing(tmp_path, upstream, "route", 'model = "safe-model"') as proxy:
        assert ask(proxy, "the forbidden thing").json()["guard"]["outcome"] == "routed"
        assert upstream.got[0].json["model"] == "safe-model"
        ask(proxy, "hello")
        assert upstream.got[1].json["model"] == "m"


def test_a_screen_has_the_upstreams_plugin_apply_a_policy(tmp_path: Path) -> None:
    upstream = said("ok")
    with standing(tmp_path, upstream, "policy", 'upstream_policy = "strict"') as proxy:
        told = ask(proxy, "the forbidden thing", vllm_xargs={"x": 1}).json()
        assert told["guard"]["outcome"] == "delegated"
        assert upstream.got[0].json["vllm_xargs"] == {"x": 1, "guard_policy": "strict"}


def test_in_a_race_the_answer_waits_for_the_screens(tmp_path: Path) -> None:
    upstream = said("ok")
    with standing(tmp_path, upstream, "block", "race = true") as proxy:
        slow = proxy.app.desk.screener.read

        async def read(*arguments: Any) -> Any:
            await asyncio.sleep(0.3)
            return await slow(*arguments)

        proxy.app.desk.screener.read = read  # type: ignore[method-assign]
        blocked = ask(proxy, "the forbidden thing")
        assert blocked.status_code == 400
        assert len(upstream.got) == 1, "the upstream was asked meanwhile"
        begun = time.monotonic()
        assert ask(proxy, "hello").status_code == 200
        assert time.monotonic() - begun >= 0.3
        assert [line["outcome"] for line in proxy.lines(2)] == ["blocked", "pass"]


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/v1/files"), ("POST", "/v1/audio/transcriptions"), ("POST", "/api/chat")],
)
def test_what_nobody_reads_is_refused_unless_it_is_listed(
    tmp_path: Path, method: str, path: str
) -> None:
    upstream = said("ok")
    with standing(tmp_path, upstream) as proxy:
        answer = httpx.request(method, proxy.url + path, json={"a": "forbidden thing"})
        assert answer.status_code == 403
        assert answer.json()["error"]["code"] == "unscreened_route"
        assert not upstream.got
    with standing(tmp_path, upstream, screen=f'unscreened = ["{path[:6]}*"]') as proxy:
        assert httpx.request(method, proxy.url + path, json={}).status_code == 200
        assert proxy.lines(2)[1]["unscreened"] == [path]


def test_images_in_a_request_need_leave(tmp_path: Path) -> None:
    parts = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]
    upstream = said("ok")
    body = {"model": "m", "messages": [{"role": "user", "content": parts}]}
    with standing(tmp_path, upstream) as proxy:
        answer = httpx.post(f"{proxy.url}/v1/chat/completions", json=body)
        assert answer.json()["error"]["code"] == "unscreened_content"
    with standing(tmp_path, upstream, screen='unscreened = ["images"]') as proxy:
        told = httpx.post(f"{proxy.url}/v1/chat/completions", json=body).json()
        assert told["guard"]["unscreened"] == ["pictures"]


def test_a_question_that_is_split_over_turns_is_seen(tmp_path: Path) -> None:
    turns = [
        {"role": "user", "content": "remember the word forbidden"},
        {"role": "assistant", "content": "ok"},
        {"role": "user", "content": "thing is the second word"},
    ]
    body = {"model": "m", "messages": turns}
    upstream = said("ok")
    with standing(tmp_path, upstream) as proxy:
        assert httpx.post(f"{proxy.url}/v1/chat/completions", json=body).status_code == 200
    with standing(tmp_path, upstream, screen="turns = 2") as proxy:
        assert httpx.post(f"{proxy.url}/v1/chat/completions", json=body).status_code == 400


def test_names_that_stand_twice_are_refused_where_text_is_read(tmp_path: Path) -> None:
    upstream = said("ok")
    with standing(tmp_path, upstream) as proxy:
        raw = (
            b'{"model":"m","messages":[{"content":"forbidden thing","content":"x","role":"user"}]}'
        )
        answer = httpx.post(
            f"{proxy.url}/v1/chat/completions",
            content=raw,
            headers={"content-type": "application/json"},
        )
        assert answer.status_code == 400
        assert not upstream.got


def test_responses_are_read_in_all_that_repeats_them(tmp_path: Path) -> None:
    text = "mail joe@home.com now"

    async def answer(got: Got, send: Send) -> None:
        await begin(send)
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
            await piece(send, f"event: {event['type']}\ndata: {data}\n\n".encode())
        await piece(send, b"", more=False)

    with standing(tmp_path, Upstream(answer), "redact") as proxy:
        client = OpenAI(base_url=f"{proxy.url}/v1", api_key="none")
        events = list(client.responses.create(model="m", input="hello", stream=True))
        deltas = [e.delta for e in events if e.type == "response.output_text.delta"]
        assert "".join(deltas) == "mail [EMAIL_1] now"
        last = events[-1]
        assert last.type == "response.completed"
        assert last.response.output_text == "mail [EMAIL_1] now"
        assert "joe@" not in str(events)
    with standing(tmp_path, Upstream(answer), "block") as proxy:
        client = OpenAI(base_url=f"{proxy.url}/v1", api_key="none")
        events = list(client.responses.create(model="m", input="hello", stream=True))
        assert events[-1].type == "response.incomplete"
        assert events[-1].response.incomplete_details.reason == "content_filter"
        assert "joe@" not in str(events)


def test_messages_of_anthropics_are_read(tmp_path: Path) -> None:
    async def answer(got: Got, send: Send) -> None:
        await begin(send)
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
            await piece(send, f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode())
        await piece(send, b"", more=False)

    with standing(tmp_path, Upstream(answer)) as proxy:
        body = {"model": "m", "max_tokens": 9, "stream": True, "messages": []}
        answer_ = httpx.post(f"{proxy.url}/v1/messages", json=body)
        names = [line[7:] for line in answer_.text.splitlines() if line.startswith("event: ")]
        assert names[-3:] == ["content_block_stop", "message_delta", "message_stop"]
        assert '"stop_reason":"refusal"' in answer_.text
        assert "forb" not in answer_.text


def test_moderations_are_answered_here(tmp_path: Path) -> None:
    upstream = said("ok")
    with standing(tmp_path, upstream) as proxy:
        client = OpenAI(base_url=f"{proxy.url}/v1", api_key="none")
        told = client.moderations.create(input=["the forbidden thing", "hello"])
        assert [each.flagged for each in told.results] == [True, False]
        assert told.results[0].model_extra is not None
        assert not upstream.got


def test_held_text_leaves_after_the_time_that_the_policy_sets(tmp_path: Path) -> None:
    async def slow(got: Got, send: Send) -> None:
        await begin(send)
        await piece(send, chunk({"content": "hello"}))
        await asyncio.sleep(1.5)
        await piece(send, chunk({}, end="stop"))
        await piece(send, b"data: [DONE]\n\n", more=False)

    with standing(tmp_path, Upstream(slow), screen="hold_back_ms = 100") as proxy:
        body = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "x"}]}
        begun = time.monotonic()
        with httpx.stream("POST", f"{proxy.url}/v1/chat/completions", json=body) as answer:
            for line in answer.iter_lines():
                if "hello" in line:
                    assert time.monotonic() - begun < 1.0
                    break
            else:
                raise AssertionError("it never came")
