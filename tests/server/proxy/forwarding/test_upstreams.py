"""The choice of an upstream, breakers, credentials and headers."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest

from guard.config.proxy_schema import UpstreamConfig
from guard.errors import ConfigError, UnknownModel
from server.errors import Overloaded
from server.proxy.forwarding.breaker import Breaker
from server.proxy.forwarding.headers import to_client, to_upstream
from server.proxy.forwarding.upstreams import Upstreams


def _upstreams(*configs: dict[str, Any], environment: dict[str, str] | None = None) -> Upstreams:
    made = [
        UpstreamConfig(**{"name": f"u{i}", "url": "http://x"} | c) for i, c in enumerate(configs)
    ]
    return Upstreams(made, environment or {}, random.Random(0))


def test_requests_go_in_proportion_to_weights() -> None:
    upstreams = _upstreams({"weight": 3.0}, {"weight": 1.0}, {"weight": 0.0})
    counts = Counter(upstreams.choose("m").name for _ in range(4000))
    assert set(counts) == {"u0", "u1"}
    assert 2.5 < counts["u0"] / counts["u1"] < 3.5
    assert upstreams.choose("m", "u2").name == "u2", "unless a screen routes there"


def test_models_decide_before_weights() -> None:
    upstreams = _upstreams({"models": ("a",)}, {"models": ("b", "c")})
    assert {upstreams.choose("c").name for _ in range(20)} == {"u1"}
    assert {upstreams.choose(None).name for _ in range(50)} == {"u0", "u1"}
    with pytest.raises(UnknownModel):
        upstreams.choose("d")


def test_those_that_are_not_well_are_left_out() -> None:
    upstreams = _upstreams({}, {})
    upstreams.all[0].healthy = False
    assert {upstreams.choose("m").name for _ in range(20)} == {"u1"}
    with pytest.raises(Overloaded):
        upstreams.choose("m", None, [upstreams.all[1]])


@pytest.mark.parametrize(
    ("base", "path", "asked"),
    [
        ("https://x", "/v1/models", "https://x/v1/models"),
        ("https://x/", "/v1/models", "https://x/v1/models"),
        ("https://x", "/health", "https://x/health"),
        ("https://x/v1", "/v1/models", "https://x/v1/models"),
        ("https://x/v1/", "/v1/models", "https://x/v1/models"),
        ("https://x/v1", "/health", "https://x/health"),
        ("https://x/api/v1/", "/v1/models", "https://x/api/v1/models"),
        ("https://x/api/v1/", "/other", "https://x/api/other"),
        ("https://x/v1beta/openai", "/v1/models", "https://x/v1beta/openai/models"),
        ("https://x/v1beta/openai/", "/v1/models", "https://x/v1beta/openai/models"),
        ("https://x/api/paas/v4", "/v1/models", "https://x/api/paas/v4/models"),
        ("https://x/api/paas/v4/", "/v1/models", "https://x/api/paas/v4/models"),
        ("https://x/api/paas/v4", "/other", "https://x/api/paas/v4/other"),
        ("https://x/inference", "/v1/models", "https://x/inference/models"),
        ("https://x/openai/deployments/d", "/v1/models", "https://x/openai/deployments/d/models"),
        ("https://x/api/v4", "/v1beta/models", "https://x/api/v4/v1beta/models"),
        ("https://x/api/v4", "/v1", "https://x/api/v4"),
    ],
)
def test_an_upstream_is_asked_below_its_own_base(base: str, path: str, asked: str) -> None:
    (upstream,) = Upstreams([UpstreamConfig(name="u", url=base)], {}).all
    assert upstream.url(path, "") == asked
    assert upstream.url(path, "a=1&b=%2F") == f"{asked}?a=1&b=%2F"


def test_a_server_of_mcp_has_one_url_and_gets_no_models() -> None:
    tools = {"name": "tools", "url": "https://x/api/mcp/", "mcp": "/mcp/tools"}
    upstreams = _upstreams({"name": "u"}, tools)
    assert upstreams.mcp == {"/mcp/tools": "tools"}
    assert {upstreams.choose(None).name for _ in range(30)} == {"u"}
    server = upstreams.choose(None, "tools")
    assert server.url("/mcp/tools", "a=1") == "https://x/api/mcp/?a=1"
    assert server.url("/health", "") == "https://x/health"


def test_a_credential_that_is_not_there_is_told_at_start() -> None:
    with pytest.raises(ConfigError, match="KEY is not set"):
        _upstreams({"key_env": "KEY"})
    made = _upstreams({"key_env": "KEY", "key_header": "api-key"}, environment={"KEY": "k\n"})
    assert made.all[0].credential == [(b"api-key", b"k")]
    assert "k" not in repr(made.all[0]).replace("key", "").replace("cooldown_s", "")[-40:]


def test_the_breaker_opens_waits_tries_and_closes() -> None:
    now = 0.0
    breaker = Breaker(2, 10.0, lambda: now)
    breaker.failed()
    assert breaker.wait_s == 0
    breaker.succeeded()
    breaker.failed()
    breaker.failed()
    assert breaker.wait_s == 10.0
    now = 10.0
    assert breaker.wait_s == 0
    breaker.begin()
    assert breaker.wait_s > 0, "one at a time tries"
    breaker.failed()
    assert breaker.wait_s == 10.0, "it opens again at once"
    now = 20.0
    breaker.begin()
    breaker.gave_up()
    assert breaker.wait_s == 0
    breaker.begin()
    breaker.succeeded()
    assert breaker.wait_s == 0
    breaker.failed()
    assert breaker.wait_s == 0, "it counts failures anew"


def test_headers_of_one_connection_and_keys_stay() -> None:
    given = [
        *((b"Connection", b"X-Mine, close"), (b"x-mine", b"1"), (b"Authorization", b"k")),
        *((b"X-Api-Key", b"k"), (b"Content-Length", b"3"), (b"OpenAI-Beta", b"a")),
        *((b"openai-beta", b"b"), (b"Transfer-Encoding", b"chunked"), (b"Host", b"h")),
    ]
    assert to_upstream(given) == [(b"openai-beta", b"a"), (b"openai-beta", b"b")]
    back = [(b"X-Guard-Verdict", b"pass"), (b"Set-Cookie", b"a"), (b"Keep-Alive", b"1")]
    back += [(b"Location", b"http://u:1/x"), (b"Server", b"u"), (b"Via", b"1.1 u")]
    back += [(b"Content-Location", b"/x"), (b"Link", b"<http://u>"), (b"X-Forwarded-Host", b"u")]
    back += [(b"Access-Control-Allow-Origin", b"*"), (b"Alt-Svc", b"h3"), (b"X-Powered-By", b"u")]
    assert to_client([*back, (b"Retry-After", b"1")]) == [(b"retry-after", b"1")]
