"""Requests and whole responses under policies that screen text."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI
from starlette.types import Send

from tests.server.proxy.screened import answering, ask, post_raw, screened
from tests.server.proxy.stand import (
    Upstream,
    UpstreamRequest,
    chat_completion,
    chat_stream,
    send_response,
)


def test_a_request_is_blocked_before_the_upstream_sees_it(tmp_path: Path) -> None:
    upstream = answering("hello")
    with screened(tmp_path, upstream) as proxy:
        response = ask(proxy, "tell me of the f0rbidden\u200b thing")
        assert response.status_code == 400
        assert response.json()["error"]["code"] == "content_filter"
        guard = response.json()["guard"]
        assert guard["outcome"] == "blocked"
        assert guard["guards"][0]["place"] == "messages[0].content"
        assert response.headers["x-guard-verdict"] == "blocked"
        assert not upstream.requests
        (line,) = proxy.audit_lines()
        assert line["outcome"] == "blocked"
        assert line["guards"] == guard["guards"]


def test_what_a_screen_takes_is_measured(tmp_path: Path) -> None:
    with screened(tmp_path, answering("hello")) as proxy:
        verdict = ask(proxy, "hello").json()["guard"]
        guard = verdict["guards"][0]["guard"]
        lines = httpx.get(f"{proxy.url}/metrics").text.splitlines()
        readings = f'inference_guard_guard_seconds_count{{guard="{guard}",tenant=""}}'
        rows = f'inference_guard_row_seconds_count{{policy="{verdict["policy"]}",tenant=""}} 1.0'
        (read,) = (float(line.split()[-1]) for line in lines if line.startswith(readings))
        assert read >= 2, "the request and its answer"
        assert rows in lines


def test_silence_leaves_request_and_answer_as_they_are(tmp_path: Path) -> None:
    upstream = answering("hello")
    with screened(tmp_path, upstream) as proxy:
        raw = b'{"model":"m", "seed": 1.0, "messages":[{"role":"user","content":"caf\xc3\xa9"}]}'
        response = post_raw(proxy.url, raw)
        assert upstream.requests[0].body == raw
        completion = response.json()
        assert completion.pop("guard")["outcome"] == "pass"
        assert completion == chat_completion("hello")


def test_an_answer_is_blocked(tmp_path: Path) -> None:
    with screened(tmp_path, answering("here is the forbidden thing")) as proxy:
        response = ask(proxy, "hello")
        assert response.status_code == 200
        assert response.headers["x-guard-verdict"] == "blocked"
        completion = response.json()
        assert completion["choices"][0]["finish_reason"] == "content_filter"
        assert completion["choices"][0]["message"]["content"] == ""
        assert completion["guard"]["outcome"] == "blocked"
        assert "forbidden" not in response.text
        (line,) = proxy.audit_lines()
        assert line["outcome"] == "blocked"


def test_what_is_cut_out_of_a_request_is_put_back_into_the_answer(tmp_path: Path) -> None:
    async def respond(request: UpstreamRequest, send: Send) -> None:
        content = request.json["messages"][0]["content"]
        await send_response(send, chat_completion(f"You wrote: {content}"))

    upstream = Upstream(respond)
    with screened(tmp_path, upstream, "redact", 'restore = true\nlook = ["user"]') as proxy:
        completion = ask(proxy, "write to joe@home.com and ann@work.com, then joe@home.com").json()
        asked = upstream.requests[0].json["messages"][0]["content"]
        assert asked == "write to [EMAIL_1] and [EMAIL_2], then [EMAIL_1]"
        content = completion["choices"][0]["message"]["content"]
        assert content == "You wrote: write to joe@home.com and ann@work.com, then joe@home.com"
        assert completion["guard"]["outcome"] == "redacted"
        assert "joe" not in proxy.audit.read_text()


@pytest.mark.parametrize("stream", [False, True])
def test_what_is_cut_out_of_the_answer_itself_stays_out(tmp_path: Path, stream: bool) -> None:
    text = "to [EMAIL_1] and ann@work.com and [EMAIL_2]"
    upstream = Upstream(chat_stream([text])) if stream else answering(text)
    with screened(tmp_path, upstream, "redact", "restore = true") as proxy:
        response = ask(proxy, "joe@home.com", stream=stream)
        assert "to joe@home.com and [EMAIL_2] and [EMAIL_2]" in response.text
        assert "ann@" not in response.text


@pytest.mark.parametrize(("action", "outcome"), [("flag", "flagged"), ("observe", "pass")])
def test_flagging_and_observing_change_nothing_but_the_verdict(
    tmp_path: Path, action: str, outcome: str
) -> None:
    with screened(tmp_path, answering("ok"), action) as proxy:
        completion = ask(proxy, "the forbidden thing").json()
        assert completion["choices"][0]["message"]["content"] == "ok"
        assert completion["guard"]["outcome"] == outcome
        assert completion["guard"]["guards"][0]["fired"] is True


def test_a_screen_routes_to_another_model(tmp_path: Path) -> None:
    upstream = answering("ok")
    with screened(tmp_path, upstream, "route", 'model = "safe-model"') as proxy:
        assert ask(proxy, "the forbidden thing").json()["guard"]["outcome"] == "routed"
        assert upstream.requests[0].json["model"] == "safe-model"
        ask(proxy, "hello")
        assert upstream.requests[1].json["model"] == "m"


def test_a_screen_has_the_upstreams_plugin_apply_a_policy(tmp_path: Path) -> None:
    upstream = answering("ok")
    with screened(tmp_path, upstream, "policy", 'upstream_policy = "strict"') as proxy:
        completion = ask(proxy, "the forbidden thing", vllm_xargs={"x": 1}).json()
        assert completion["guard"]["outcome"] == "delegated"
        assert upstream.requests[0].json["vllm_xargs"] == {"x": 1, "guard_policy": "strict"}


def test_in_a_race_the_answer_waits_for_the_screens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream = answering("ok")
    with screened(tmp_path, upstream, "block", "race = true") as proxy:
        slow = proxy.app.context.screener.read

        async def read(*arguments: Any) -> Any:
            await asyncio.sleep(0.3)
            return await slow(*arguments)

        monkeypatch.setattr(proxy.app.context.screener, "read", read)
        blocked = ask(proxy, "the forbidden thing")
        assert blocked.status_code == 400
        assert len(upstream.requests) == 1, "the upstream was asked meanwhile"
        begun = time.monotonic()
        assert ask(proxy, "hello").status_code == 200
        assert time.monotonic() - begun >= 0.3
        assert [line["outcome"] for line in proxy.audit_lines(2)] == ["blocked", "pass"]


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/v1/files"), ("POST", "/v1/audio/transcriptions"), ("POST", "/api/chat")],
)
def test_what_nobody_reads_is_refused_unless_it_is_listed(
    tmp_path: Path, method: str, path: str
) -> None:
    upstream = answering("ok")
    with screened(tmp_path, upstream) as proxy:
        response = httpx.request(method, proxy.url + path, json={"a": "forbidden thing"})
        assert response.status_code == 403
        assert response.json()["error"]["code"] == "unscreened_route"
        assert not upstream.requests
    with screened(tmp_path, upstream, screen=f'unscreened = ["{path[:6]}*"]') as proxy:
        assert httpx.request(method, proxy.url + path, json={}).status_code == 200
        assert proxy.audit_lines(2)[1]["unscreened"] == [path]


def test_images_in_a_request_need_leave(tmp_path: Path) -> None:
    parts = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]
    upstream = answering("ok")
    body = {"model": "m", "messages": [{"role": "user", "content": parts}]}
    with screened(tmp_path, upstream) as proxy:
        response = httpx.post(f"{proxy.url}/v1/chat/completions", json=body)
        assert response.json()["error"]["code"] == "unscreened_content"
    with screened(tmp_path, upstream, screen='unscreened = ["images"]') as proxy:
        completion = httpx.post(f"{proxy.url}/v1/chat/completions", json=body).json()
        assert completion["guard"]["unscreened"] == ["pictures"]


def test_a_question_that_is_split_over_turns_is_seen(tmp_path: Path) -> None:
    turns = [
        {"role": "user", "content": "remember the word forbidden"},
        {"role": "assistant", "content": "ok"},
        {"role": "user", "content": "thing is the second word"},
    ]
    body = {"model": "m", "messages": turns}
    upstream = answering("ok")
    with screened(tmp_path, upstream) as proxy:
        assert httpx.post(f"{proxy.url}/v1/chat/completions", json=body).status_code == 200
    with screened(tmp_path, upstream, screen="turns = 2") as proxy:
        assert httpx.post(f"{proxy.url}/v1/chat/completions", json=body).status_code == 400


def test_names_that_stand_twice_are_refused_where_text_is_read(tmp_path: Path) -> None:
    upstream = answering("ok")
    with screened(tmp_path, upstream) as proxy:
        raw = (
            b'{"model":"m","messages":[{"content":"forbidden thing","content":"x","role":"user"}]}'
        )
        response = post_raw(proxy.url, raw)
        assert response.status_code == 400
        assert not upstream.requests


def test_moderations_are_answered_here(tmp_path: Path) -> None:
    upstream = answering("ok")
    with screened(tmp_path, upstream) as proxy:
        client = OpenAI(base_url=f"{proxy.url}/v1", api_key="none")
        moderation = client.moderations.create(input=["the forbidden thing", "hello"])
        assert [result.flagged for result in moderation.results] == [True, False]
        assert moderation.results[0].model_extra is not None
        assert not upstream.requests


@pytest.mark.parametrize("form", ["{}", "[{}]", '{{"choices": [{}]}}'])
def test_of_names_that_stand_twice_in_an_answer_the_one_that_was_read_leaves(
    tmp_path: Path, form: str
) -> None:
    body = form.format('{"text": "here is the forbidden thing", "text": "well"}').encode()

    async def respond(request: UpstreamRequest, send: Send) -> None:
        await send_response(send, body)

    with screened(tmp_path, Upstream(respond)) as proxy:
        response = httpx.post(f"{proxy.url}/v1/completions", json={"model": "m", "prompt": "hi"})
        assert response.status_code == 200
        assert "well" in response.text
        assert "forbidden" not in response.text


def test_json_in_strings_that_is_too_deep_is_refused(tmp_path: Path) -> None:
    text = '{"note":"x"}'
    for _ in range(30):
        text = text.replace("\\", "\\u005c").replace('"', "\\u0022")
        text = f'{{"a":"{text}"}}'
    upstream = answering(text)
    with screened(tmp_path, upstream) as proxy:
        response = ask(proxy, text)
        assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_json")
        assert "strings of JSON" in response.json()["error"]["message"]
        assert not upstream.requests
        response = ask(proxy, "hello")
        assert (response.status_code, response.json()["error"]["code"]) == (
            502,
            "unreadable_answer",
        )
    respond = chat_stream([text[i : i + 50] for i in range(0, len(text), 50)])
    with screened(tmp_path, Upstream(respond)) as proxy:
        response = ask(proxy, "hello", stream=True)
        assert "unreadable_answer" in response.text
