"""The edges of HTTP are the same at a server and at a proxy."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from starlette.types import Send

from tests.server.edge.surfaces import raw_request, surfaces
from tests.server.proxy.stand import (
    Upstream,
    UpstreamRequest,
    chat_chunk,
    send_chunk,
    send_head,
    send_response,
)

CHAT = {"model": "fake", "messages": [{"role": "user", "content": "hello"}]}
KEY = "sk-mine"
PAGE = "https://app.example.com"


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with surfaces(tmp_path_factory.mktemp("edges")) as running:
        yield running


@pytest.fixture(params=["server", "proxy"])
def url(request: pytest.FixtureRequest, urls: dict[str, str]) -> str:
    return urls[request.param]


# -- paths --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["/v1/chat/completions/", "//v1/chat/completions", "/v1//chat/completions//"]
)
def test_slashes_at_the_end_and_doubled_are_taken(url: str, path: str) -> None:
    response = httpx.post(httpx.URL(url).copy_with(raw_path=path.encode()), json=CHAT)
    assert response.status_code == 200, response.text
    assert response.headers["x-guard-policy"] == "p"


@pytest.mark.parametrize("path", ["/chat/completions", "/v1/v1/chat/completions"])
def test_a_forgotten_version_is_told_with_the_right_path(url: str, path: str) -> None:
    response = httpx.post(url + path, json=CHAT)
    assert (response.status_code, response.json()["error"]["code"]) == (404, "unknown_url")
    assert "it is /v1/chat/completions here" in response.json()["error"]["message"]


# -- methods ------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/fake", "/health", "/ready", "/metrics"])
def test_head_is_get_without_its_body(url: str, path: str) -> None:
    got, head = httpx.get(url + path), httpx.head(url + path)
    assert got.status_code == head.status_code == 200
    assert head.content == b"" and got.content
    assert head.headers["content-type"] == got.headers["content-type"]


def test_head_of_what_only_takes_posts_is_refused(url: str) -> None:
    response = httpx.head(f"{url}/v1/chat/completions")
    assert response.status_code == 405 and response.content == b""
    assert response.headers["allow"] == "OPTIONS, POST"


@pytest.mark.parametrize(
    ("path", "allow"),
    [
        ("/v1/chat/completions", "OPTIONS, POST"),
        ("/v1/images/generations", "OPTIONS, POST"),
        ("/v1/models", "GET, HEAD, OPTIONS"),
        ("/health", "GET, HEAD, OPTIONS"),
    ],
)
def test_options_name_the_methods(url: str, path: str, allow: str) -> None:
    response = httpx.options(url + path)
    assert (response.status_code, response.headers["allow"]) == (204, allow)
    assert response.content == b""


# -- HTTP/1.0 -----------------------------------------------------------------------------------


def chat_request(version: str, *, stream: bool) -> bytes:
    body = json.dumps(CHAT | {"stream": stream}).encode()
    head = (
        f"POST /v1/chat/completions HTTP/{version}\r\nhost: x\r\nconnection: close\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def test_a_client_of_http_1_0_gets_no_chunks(url: str) -> None:
    head, _, body = raw_request(url, chat_request("1.0", stream=False)).partition(b"\r\n\r\n")
    assert head.splitlines()[0].endswith(b" 200 OK")
    assert json.loads(body)["object"] == "chat.completion"
    head, _, body = raw_request(url, chat_request("1.0", stream=True)).partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head.lower() and b"connection: close" in head.lower()
    assert body.startswith(b"data: {") and body.endswith(b"data: [DONE]\n\n")
    head, _, body = raw_request(url, chat_request("1.1", stream=True)).partition(b"\r\n\r\n")
    assert b"transfer-encoding: chunked" in head.lower() and body.endswith(b"0\r\n\r\n")


# -- compressed bodies --------------------------------------------------------------------------


def post_packed(url: str, content: bytes, coding: str) -> httpx.Response:
    headers = {"content-type": "application/json", "content-encoding": coding}
    return httpx.post(f"{url}/v1/chat/completions", content=content, headers=headers)


def test_compressed_bodies_are_read_and_screened(url: str) -> None:
    good = json.dumps(CHAT).encode()
    bad = good.replace(b"hello", b"the forbidden thing")
    for coding, pack in (("gzip", gzip.compress), ("deflate", zlib.compress)):
        assert post_packed(url, pack(good), coding).status_code == 200
        refused = post_packed(url, pack(bad), coding)
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "content_filter")


def test_compressed_bodies_that_are_not_read_are_refused_alike(urls: dict[str, str]) -> None:
    bomb = gzip.compress(bytes(40_000_000))
    cases = [
        (gzip.compress(b"{}"), "br", 415, "unsupported_media_type"),
        (b"{}", "zstd", 415, "unsupported_media_type"),
        (b"{}", "gzip", 400, "invalid_encoding"),
        (bomb, "gzip", 413, "request_too_large"),
    ]
    for content, coding, status, code in cases:
        for url in urls.values():
            response = post_packed(url, content, coding)
            assert (response.status_code, response.json()["error"]["code"]) == (status, code)


# -- origins ------------------------------------------------------------------------------------


def preflight(url: str, origin: str) -> httpx.Response:
    headers = {
        "origin": origin,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization, content-type, x-guard-policy",
    }
    return httpx.options(f"{url}/v1/chat/completions", headers=headers)


def test_pages_may_not_call_unless_it_is_configured(url: str) -> None:
    assert not [name for name in preflight(url, PAGE).headers if name.startswith("access-control")]
    response = httpx.post(f"{url}/v1/chat/completions", json=CHAT, headers={"origin": PAGE})
    assert not [name for name in response.headers if name.startswith("access-control")]


def test_pages_of_configured_origins_may_call(tmp_path: Path) -> None:
    digest = hashlib.sha256(KEY.encode()).hexdigest()
    keys = f'[[keys]]\nhash = "sha256:{digest}"\ntenant = "me"\n'
    keys += 'default_policy = "p"\n'
    with surfaces(tmp_path, server=f'cors_origins = ["{PAGE}"]', more=keys) as urls:
        for url in urls.values():
            allowed = preflight(url, PAGE)
            assert allowed.status_code == 200, "a preflight brings no key"
            assert allowed.headers["access-control-allow-origin"] == PAGE
            assert "x-guard-policy" in allowed.headers["access-control-allow-headers"].lower()
            refused = preflight(url, "https://other.example.com")
            assert "access-control-allow-origin" not in refused.headers
            headers = {"origin": PAGE, "x-api-key": KEY}
            response = httpx.post(f"{url}/v1/chat/completions", json=CHAT, headers=headers)
            assert response.status_code == 200
            assert response.headers["access-control-allow-origin"] == PAGE
            exposed = response.headers["access-control-expose-headers"].lower()
            assert "x-guard-verdict" in exposed and "x-guard-policy" in exposed
            # errors can be read by the page, too
            unknown = httpx.post(f"{url}/v1/chat/completions", json=CHAT, headers={"origin": PAGE})
            assert unknown.status_code == 401
            assert unknown.headers["access-control-allow-origin"] == PAGE


def test_any_page_may_call_without_credentials(tmp_path: Path) -> None:
    async def limited(request: UpstreamRequest, send: Send) -> None:
        headers = {"x-ratelimit-remaining-requests": "7"}
        await send_response(send, {"object": "list", "data": []}, headers=headers)

    with surfaces(tmp_path, server='cors_origins = ["*"]', upstream=Upstream(limited)) as urls:
        for url in urls.values():
            asked = preflight(url, PAGE)
            assert asked.status_code == 200
            headers = {"origin": PAGE, "cookie": "session=1"}
            wrong = {**headers, "x-guard-policy": "unknown"}
            answers = [
                httpx.get(f"{url}/v1/models", headers=headers),
                httpx.post(f"{url}/v1/chat/completions", json=CHAT, headers=wrong),
            ]
            assert [answer.status_code for answer in answers] == [200, 400]
            for response in (asked, *answers):
                assert "access-control-allow-credentials" not in response.headers
            for response in answers:
                assert response.headers["access-control-allow-origin"] == "*"
                exposed = response.headers["access-control-expose-headers"].lower().split(", ")
                assert {"x-request-id", "retry-after", "x-ratelimit-remaining-requests"} <= {
                    *exposed
                }
        passed = httpx.get(f"{urls['proxy']}/v1/models", headers={"origin": PAGE})
        assert passed.headers["x-ratelimit-remaining-requests"] == "7"


# -- keys ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    digest = hashlib.sha256(KEY.encode()).hexdigest()
    keys = f'[[keys]]\nhash = "sha256:{digest}"\ntenant = "me"\n'
    with surfaces(tmp_path_factory.mktemp("keyed"), more=keys) as running:
        yield running


ROUTES = ["/v1/chat/completions", "/v1/models", "/v1/models/fake", "/guard/v1/policies"]


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("name", ["authorization", "x-api-key", "api-key", "Api-Key"])
def test_a_key_counts_where_any_client_puts_it(keyed: dict[str, str], path: str, name: str) -> None:
    for url in keyed.values():
        ask = httpx.post if path == ROUTES[0] else httpx.get
        more = {"json": CHAT} if path == ROUTES[0] else {}
        for key, status in ((KEY, 200), (KEY[:-1], 401), (KEY + "x", 401)):
            value = f"Bearer {key}" if name == "authorization" else key
            response = ask(url + path, headers={name: value}, **more)  # type: ignore[operator]
            assert response.status_code == status, (url, response.text)


def test_keys_that_differ_are_refused_and_equal_ones_are_one(keyed: dict[str, str]) -> None:
    for url in keyed.values():
        bearer = f"Bearer {KEY}"
        for headers, status in (
            ([("authorization", bearer), ("x-api-key", KEY)], 200),
            ([("authorization", "Basic eDp5"), ("x-api-key", KEY)], 200),
            ([("authorization", bearer), ("x-api-key", "other")], 401),
            ([("api-key", "other"), ("x-api-key", KEY)], 401),
            ([("x-api-key", "other"), ("x-api-key", KEY)], 401),
        ):
            response = httpx.get(f"{url}/v1/models", headers=headers)
            assert response.status_code == status
            if status == 401:
                assert "differ" in response.json()["error"]["message"]
        missing = httpx.get(f"{url}/v1/models").json()["error"]["message"]
        assert all(name in missing for name in ("Authorization: Bearer", "x-api-key", "api-key"))


# -- silences -----------------------------------------------------------------------------------


def test_a_silent_stream_is_kept_alive(tmp_path: Path) -> None:
    async def slow(request: UpstreamRequest, send: Send) -> None:
        await send_head(send)
        await asyncio.sleep(0.5)
        await send_chunk(send, chat_chunk({"content": "Hello"}))
        await asyncio.sleep(0.5)
        await send_chunk(send, chat_chunk({"content": " there"}, end="stop"))
        await send_chunk(send, b"data: [DONE]\n\n", more=False)

    with surfaces(tmp_path, server="keep_alive_s = 0.1", upstream=Upstream(slow)) as urls:
        for policy in ("none", "p"):
            begun = time.monotonic()
            with httpx.stream(
                *("POST", f"{urls['proxy']}/v1/chat/completions"),
                json=CHAT | {"stream": True},
                headers={"x-guard-policy": policy},
            ) as response:
                assert time.monotonic() - begun < 0.4, "the head comes with the upstream's"
                text = response.read().decode()
            comments = [event for event in text.split("\n\n") if event.startswith(":")]
            assert 4 <= len(comments) <= 14
            assert "Hello" in text and text.endswith("data: [DONE]\n\n")


def test_the_status_is_waited_for(tmp_path: Path) -> None:
    async def late(request: UpstreamRequest, send: Send) -> None:
        await asyncio.sleep(0.4)
        await send_response(send, {"error": {"message": "no"}}, status=429)

    with surfaces(tmp_path, server="keep_alive_s = 0.1", upstream=Upstream(late)) as urls:
        for policy in ("none", "p"):
            headers = {"x-guard-policy": policy}
            body = CHAT | {"stream": True}
            url = f"{urls['proxy']}/v1/chat/completions"
            assert httpx.post(url, json=body, headers=headers).status_code == 429
