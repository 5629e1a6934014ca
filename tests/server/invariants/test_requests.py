"""Hostile requests are refused; streams, seeds and stop strings agree with whole answers."""

from __future__ import annotations

from typing import Any

import httpx
import openai
import pytest

from tests.server.invariants.text_server import CHAT, TextServer, text_of

DEEP = "[" * 20_000 + "]" * 20_000
GOOD = '{"role": "user", "content": "hi"}'


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "invalid_json"),
        (b'{"model": "tiny", "messages": [{"role": "user", "content": "\xff\xfe"}]}', 400, None),
        (f'{{"model": "tiny", "messages": {DEEP}}}'.encode(), 400, "invalid_json"),
        (b'{"model": "tiny", "messages": [' + b"[" * 90 + b"]" * 90 + b"]}", 400, None),
        (b'{"model": "tiny", "messages": [{"role": "user", "content": "\\ud800"}]}', 400, None),
        (b'{"model": 7, "messages": [' + GOOD.encode() + b"]}", 400, "invalid_parameter"),
        (b'{"model": "tiny", "messages": "hi"}', 400, "invalid_parameter"),
        (b'{"model": "tiny", "messages": []}', 400, "invalid_parameter"),
        (b'{"model": "tiny", "messages": [{"role": "system", "content": "x"}]}', 400, None),
        (b'{"model": "tiny", "messages": [' + GOOD.encode() + b'], "n": 1e999}', 400, None),
        (b'{"model": "gpt-9", "messages": [' + GOOD.encode() + b"]}", 404, "model_not_found"),
        (
            b'{"model": "tiny", "guard": {"policy": "x"}, "messages": [' + GOOD.encode() + b"]}",
            400,
            "unknown_policy",
        ),
        (
            b'{"model": "tiny", "messages": [{"role": "user", "content": "' + b"x" * 300 + b'"}]}',
            400,
            "context_length_exceeded",
        ),
        (b" " * 100_001, 413, "request_too_large"),
    ],
)
def test_wrong_and_hostile_bodies_get_an_error_that_says_why(
    server: TextServer, body: bytes, status: int, code: str | None
) -> None:
    headers = {"Content-Type": "application/json"}
    response = httpx.post(f"{server.url}{CHAT}", content=body, headers=headers, timeout=10)
    assert response.status_code == status
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    if code is not None:
        assert error["code"] == code


def test_odd_but_valid_texts_are_answered(server: TextServer) -> None:
    for text in ("\u0000", "é😀", "<|assistant|></s>", " ", "\\ud800"):
        assert server.chat(text).choices[0].finish_reason == "length"
    with pytest.raises(openai.BadRequestError):
        server.client().completions.create(model="tiny", prompt=[[5, 10_000]])


@pytest.mark.parametrize("options", [{}, {"temperature": 1, "seed": 3}, {"top_p": 0.5, "seed": 1}])
@pytest.mark.parametrize("policy", ["none", "steer-always", "block-late"])
def test_a_stream_adds_up_to_the_answer_that_is_not_streamed(
    server: TextServer, options: dict[str, Any], policy: str
) -> None:
    options = {"max_tokens": 30, "logprobs": True, "top_logprobs": 2} | options
    whole = server.chat("tell", policy, **options)
    usage = {"include_usage": True}
    *chunks, last = server.chat("tell", policy, stream=True, stream_options=usage, **options)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == text_of(whole) and text
    logprobs = [chunk.choices[0].logprobs for chunk in chunks]
    tokens = [token for entry in logprobs if entry for token in entry.content]
    assert tokens == whole.choices[0].logprobs.content
    assert last.usage.completion_tokens == whole.usage.completion_tokens == len(tokens)
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    assert sum(token.logprob <= 0 for token in tokens) == len(tokens)
    assert all(len(token.top_logprobs) == 2 for token in tokens)


def test_choices_of_a_seed_differ_from_each_other_and_repeat(server: TextServer) -> None:
    def texts() -> list[str]:
        answer = server.chat(n=3, seed=11, temperature=1, max_tokens=20)
        assert answer.usage.completion_tokens == 60
        return [choice.message.content for choice in answer.choices]

    assert texts() == texts() and len(set(texts())) == 3


def test_a_stop_string_across_tokens_is_never_sent(server: TextServer) -> None:
    whole = text_of(server.chat())
    stop = whole[3:7]
    for stream in (False, True):
        answer = server.chat(stop=[stop, "never there"], stream=stream)
        if stream:
            text = "".join(chunk.choices[0].delta.content or "" for chunk in answer)
        else:
            text = text_of(answer)
            assert answer.choices[0].finish_reason == "stop"
        assert text == whole[: whole.index(stop)]


def test_plain_completions_run_through_the_same_rows(server: TextServer) -> None:
    answer = server.client().completions.create(
        model="tiny",
        prompt=["ab", "cde"],
        max_tokens=5,
        temperature=0,
        logprobs=1,
        extra_body={"guard": {"policy": "observe-always"}},
    )
    assert [len(choice.logprobs.tokens) for choice in answer.choices] == [5, 5]  # type: ignore[union-attr]
    for choice in answer.choices:
        assert choice.text == "".join(choice.logprobs.tokens)  # type: ignore[union-attr,arg-type]
    assert answer.guard["guards"][0]["fired"]  # type: ignore[attr-defined]
