"""Limits as clients see them, through a real client of OpenAI's."""

from __future__ import annotations

import threading
from pathlib import Path

import httpx
import openai
import pytest

from guard.config.schema import Config
from tests.server.live_server import live_server, settings
from tests.server.tenants.stand import asked, bearer, store_at, tenanted

MESSAGES = [{"role": "user", "content": "hi"}]


def test_a_client_of_openai_sees_its_limits_and_the_refusal(tmp_path: Path) -> None:
    limits = {"requests_per_minute": 2, "tokens_per_minute": 60}
    with tenanted(tmp_path, team=limits) as (live, tenants):
        client = live.client(tenants.tenant)
        for left in ("1", "0"):
            raw = client.chat.completions.with_raw_response.create(model="fake", messages=MESSAGES)  # type: ignore[call-overload]
            assert raw.headers["x-ratelimit-limit-requests"] == "2"
            assert raw.headers["x-ratelimit-remaining-requests"] == left
            assert raw.headers["x-ratelimit-reset-requests"].endswith("s")
            assert raw.headers["x-ratelimit-limit-tokens"] == "60"
        used = raw.parse().usage.total_tokens
        after = client.models.with_raw_response.list().headers["x-ratelimit-remaining-tokens"]
        assert 60 - 2 * used <= int(after) < 60
        with pytest.raises(openai.RateLimitError) as error:
            client.chat.completions.create(model="fake", messages=MESSAGES)  # type: ignore[call-overload]
        assert error.value.code == "rate_limit_exceeded"
        assert error.value.response.headers["x-ratelimit-remaining-requests"] == "0"
        assert 0 < int(error.value.response.headers["retry-after"]) <= 31
        assert "acme/research" in error.value.message


def test_a_client_of_anthropic_sees_them_in_its_own_words(tmp_path: Path) -> None:
    with tenanted(tmp_path, key={"requests_per_minute": 1}) as (live, tenants):
        body = {"model": "fake", "max_tokens": 5, "messages": MESSAGES}
        headers = {"x-api-key": tenants.tenant, "anthropic-version": "2023-06-01"}
        first = live.post("/v1/messages", json=body, headers=headers)
        assert first.status_code == 200
        assert first.headers["anthropic-ratelimit-requests-limit"] == "1"
        assert first.headers["anthropic-ratelimit-requests-remaining"] == "0"
        assert first.headers["anthropic-ratelimit-requests-reset"].endswith("Z")
        assert not [name for name in first.headers if name.startswith("x-ratelimit")]
        refused = live.post("/v1/messages", json=body, headers=headers)
        assert refused.status_code == 429
        assert refused.json()["type"] == "error"
        assert refused.json()["error"]["type"] == "rate_limit_error"


@pytest.mark.parametrize("stream", [False, True])
def test_the_tokens_of_a_month_end(tmp_path: Path, stream: bool) -> None:
    with tenanted(tmp_path, organisation={"tokens_per_month": 30}) as (live, tenants):
        answers = [asked(live, tenants.tenant, "x" * 20, stream=stream) for _ in range(6)]
        assert answers[0].status_code == 200 and answers[-1].status_code == 429
        error = answers[-1].json()["error"]
        assert error["code"] == error["type"] == "insufficient_quota"
        # a client that tries again soon does so in vain
        assert answers[-1].headers["x-should-retry"] == "false"
    with store_at(tenants.path) as store:
        tokens = {row.level: row.tokens for row in store.usage()[1]}
        assert set(tokens) >= {"organisation acme", "team acme/research"}
        assert min(tokens.values()) >= 30


def test_a_budget_outlives_the_server(tmp_path: Path) -> None:
    with tenanted(tmp_path, key={"tokens_per_month": 5}) as (live, tenants):
        assert asked(live, tenants.tenant).status_code == 200
    raw = settings() | {"tenants": {"database": str(tenants.path)}}
    with live_server(config=Config.model_validate(raw)) as again:
        assert asked(again, tenants.tenant).status_code == 429


def test_running_streams_are_counted_until_they_end(tmp_path: Path) -> None:
    with tenanted(tmp_path, key={"concurrent_requests": 2}) as (live, tenants):
        client = live.client(tenants.tenant)
        slow = [{"role": "user", "content": "slow"}]
        streams = [
            client.chat.completions.create(model="fake", messages=slow, stream=True)  # type: ignore[call-overload]
            for _ in range(2)
        ]
        for stream in streams:
            next(iter(stream))
        refused = asked(live, tenants.tenant)
        assert refused.status_code == 429 and "2 requests running" in refused.text
        for stream in streams:
            stream.close()
        live.wait_until(lambda: asked(live, tenants.tenant).status_code == 200)


def test_who_hangs_up_has_used_what_was_sent(tmp_path: Path) -> None:
    with tenanted(tmp_path, key={"tokens_per_minute": 60}) as (live, tenants):
        client = live.client(tenants.tenant)
        slow = [{"role": "user", "content": "slow"}]
        stream = client.chat.completions.create(model="fake", messages=slow, stream=True)  # type: ignore[call-overload]
        chunks = iter(stream)
        for _ in range(20):
            next(chunks)
        stream.close()

        def left() -> int:
            listed = httpx.get(f"{live.url}/v1/models", headers=bearer(tenants.tenant))
            return int(listed.headers["x-ratelimit-remaining-tokens"])

        live.wait_until(lambda: left() < 60 - 20)


def test_many_threads_get_no_more_than_the_limit(tmp_path: Path) -> None:
    with tenanted(tmp_path, team={"requests_per_minute": 8}) as (live, tenants):
        statuses: list[int] = []

        def ask() -> None:
            statuses.extend(asked(live, tenants.tenant).status_code for _ in range(5))

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        # a bucket fills while the test runs
        assert 8 <= statuses.count(200) <= 10 and set(statuses) == {200, 429}
