"""Tokens that count against a key's limits, as upstreams tell them, and in the proxy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from server.proxy.token_usage import AnswerUsage
from tests.server.proxy.stand import (
    Upstream,
    UpstreamRequest,
    chat_completion,
    chat_stream,
    proxied,
    send_response,
    served,
)
from tests.server.tenants.stand import bearer, seeded, store_at

ANTHROPIC = [
    {"type": "message_start", "message": {"usage": {"input_tokens": 7, "output_tokens": 1}}},
    {"type": "content_block_delta", "delta": {"text": 'a "usage": {"output_tokens": 999}'}},
    {"type": "message_delta", "usage": {"output_tokens": 12}},
]
OPENAI = [{"choices": [{"delta": {"content": "x"}}], "usage": None}] * 3
WITH_USAGE = [*OPENAI, {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 3}}]
COMPLETED = {"usage": {"input_tokens": 4, "output_tokens": 6}}
RESPONSES = [{"type": "response.completed", "response": COMPLETED}]


def told(body: bytes, media: str, *, size: int = 40, cut: int = 7, ends: bool = True) -> int:
    usage = AnswerUsage()
    for part in (size // 2, size - size // 2):
        usage.read_request({"type": "http.request", "body": b"x" * part})
    head = [(b"content-type", media.encode())]
    usage.read({"type": "http.response.start", "status": 200, "headers": head})
    for start in range(0, len(body), cut):
        more = not ends or start + cut < len(body)
        part = body[start : start + cut]
        usage.read({"type": "http.response.body", "body": part, "more_body": more})
    return usage.tokens()


def stream(events: list[Any]) -> bytes:
    return b"".join(f"data: {json.dumps(event)}\n\n".encode() for event in events)


@pytest.mark.parametrize("cut", [7, 1000, 10**6])
@pytest.mark.parametrize(
    ("events", "tokens"),
    [(ANTHROPIC, 19), (WITH_USAGE, 8), (RESPONSES, 10), ([{"x": "y" * 200_000}, *WITH_USAGE], 8)],
)
def test_a_stream_says_its_tokens(events: list[Any], tokens: int, cut: int) -> None:
    assert told(stream(events), "text/event-stream; charset=utf-8", cut=cut) == tokens


def test_a_stream_that_says_none_is_estimated() -> None:
    assert told(stream(OPENAI), "text/event-stream", cut=10**6) == 40 // 4 + 3


def test_a_stream_that_breaks_off_has_used_what_it_has_sent() -> None:
    begun = stream(ANTHROPIC[:1] + ANTHROPIC[1:2] * 50)
    assert told(begun, "text/event-stream", ends=False, cut=10**6) == 7 + 51
    assert told(stream(WITH_USAGE), "text/event-stream", ends=False, cut=10**6) == 5 + 4


def test_what_is_repeated_of_the_request_is_no_usage() -> None:
    tools = [{"parameters": {"properties": {"usage": {"type": "object"}}}}]
    events = [{"response": {"tools": tools}}, *OPENAI]
    assert told(stream(events), "text/event-stream", cut=10**6) == 40 // 4 + 4


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        (b'{"usage": {"prompt_tokens": 3, "completion_tokens": 4}}', 7),
        (b'{"data": [], "usage": {"prompt_tokens": 3, "total_tokens": 3}}', 3),
        (b'{"usage": {"input_tokens": 3, "cache_read_input_tokens": 5, "output_tokens": 1}}', 9),
        (b'{"usage": {"prompt_tokens": -5, "completion_tokens": "4"}}', 0),
        (b'{"usage": {"prompt_tokens": 1e9999}}', 0),
        (b'{"usage": {' + b'"a": {' * 5000, 0),
        (b'{"usage": {"prompt_tokens": ' + b"9" * 5000 + b"}}", 0),
        (b"not json", 0),
        (b"", 0),
    ],
)
def test_a_whole_answer_says_its_tokens(body: bytes, tokens: int) -> None:
    assert told(body, "application/json", cut=10**6) == tokens


TENANTS = '[tenants]\ndatabase = "tenants.sqlite"\nrefresh_s = 0.1\n'


def test_a_client_of_the_proxy_has_a_budget(tmp_path: Path) -> None:
    tenants = seeded(tmp_path / "tenants.sqlite", team={"tokens_per_month": 3})

    async def answer(request: UpstreamRequest, send: Any) -> None:
        headers = {"x-ratelimit-remaining-requests": "77", "x-ratelimit-limit-requests": "99"}
        await send_response(send, chat_completion("Hello."), headers=headers)

    upstream = Upstream(answer)
    with served(upstream) as port, proxied(tmp_path, TENANTS, port) as proxy:
        client = openai.OpenAI(base_url=f"{proxy.url}/v1", api_key=tenants.tenant, max_retries=0)
        messages = [{"role": "user", "content": "hi"}]
        for _ in range(2):
            client.chat.completions.create(model="m", messages=messages)  # type: ignore[call-overload]
        with pytest.raises(openai.RateLimitError) as error:
            client.chat.completions.create(model="m", messages=messages)  # type: ignore[call-overload]
        assert error.value.code == "insufficient_quota"
        assert len(upstream.requests) == 2
        assert upstream.requests[0].header("authorization") is None
        lines = proxy.audit_lines(2)
        assert {line["tenant"] for line in lines} == {"acme/research"}
    with store_at(tenants.path) as store:
        used = {row.level: row.tokens for row in store.usage()[1]}
        assert used["organisation acme"] == used["team acme/research"] == 4


def test_limits_are_the_proxys_and_streams_count(tmp_path: Path) -> None:
    tenants = seeded(
        tmp_path / "tenants.sqlite", key={"requests_per_minute": 9, "tokens_per_minute": 50}
    )
    upstream = Upstream(chat_stream(["a"] * 60))
    with served(upstream) as port, proxied(tmp_path, TENANTS, port) as proxy:
        body = {"model": "m", "messages": [], "stream": True}
        url = f"{proxy.url}/v1/chat/completions"
        first = httpx.post(url, json=body, headers=bearer(tenants.tenant))
        assert first.status_code == 200 and first.headers["x-ratelimit-limit-requests"] == "9"
        refused = httpx.post(url, json=body, headers=bearer(tenants.tenant))
        assert refused.status_code == 429 and "50 tokens a minute" in refused.text
        assert refused.headers["x-ratelimit-remaining-tokens"] == "0"
