"""Where the upstream is stays with the proxy."""

from __future__ import annotations

import logging
import socket
from pathlib import Path

import httpx
import pytest
from starlette.types import Send

from tests.server.proxy.screened import BODY, screened
from tests.server.proxy.stand import (
    Upstream,
    UpstreamRequest,
    chat_completion,
    proxied,
    send_response,
    served,
)


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def told(response: httpx.Response) -> str:
    return f"{response.headers} {response.text}"


def test_an_upstream_that_is_down_is_not_located(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    port = closed_port()
    with proxied(tmp_path, "", port) as proxy:
        response = httpx.post(f"{proxy.url}/v1/chat/completions", json=BODY)
        assert response.json()["error"]["code"] == "upstream_unreachable"
        assert str(port) not in told(response) and "127.0.0.1" not in told(response)
        for path in ("/ready", "/metrics", "/v1/models"):
            assert str(port) not in told(httpx.get(proxy.url + path))
    assert str(port) in caplog.text, "the operator sees it"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("is_screened", [False, True])
def test_a_redirect_is_neither_followed_nor_shown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, status: int, is_screened: bool
) -> None:
    async def redirect(request: UpstreamRequest, send: Send) -> None:
        where = {"location": "http://inner.example:8123/v2/x"}
        await send_response(send, b"see inner.example", status=status, headers=where)

    upstream = Upstream(redirect)
    caplog.set_level(logging.WARNING)
    with served(upstream) as port:
        if is_screened:
            with screened(tmp_path, Upstream(redirect)) as proxy:
                response = httpx.post(f"{proxy.url}/v1/chat/completions", json=BODY)
        else:
            with proxied(tmp_path, "", port) as proxy:
                for _ in range(8):
                    response = httpx.post(f"{proxy.url}/v1/chat/completions", json=BODY)
                assert httpx.get(f"{proxy.url}/ready").status_code == 200, "no breaker opens"
    assert response.status_code == 502
    assert response.json()["error"]["code"] == "upstream_redirects"
    assert "inner.example" not in told(response)
    assert "inner.example" in caplog.text, "the operator sees it"


def test_headers_do_not_say_what_is_behind(tmp_path: Path) -> None:
    async def respond(request: UpstreamRequest, send: Send) -> None:
        headers = {
            "location": "http://inner.example:8123/v1/x",
            "server": "inner.example",
            "via": "1.1 inner.example",
            "link": "<http://inner.example/next>",
            "access-control-allow-origin": "http://inner.example",
            "x-ratelimit-remaining": "7",
        }
        await send_response(send, chat_completion("ok"), status=201, headers=headers)

    for number, open_proxy in enumerate((proxied, screened)):
        folder = tmp_path / str(number)
        folder.mkdir()
        upstream = Upstream(respond)
        with served(upstream) as port:
            is_bare = open_proxy is proxied
            context = proxied(folder, "", port) if is_bare else screened(folder, upstream)
            with context as proxy:
                response = httpx.post(f"{proxy.url}/v1/chat/completions", json=BODY)
        assert response.status_code == 201
        assert response.headers["x-ratelimit-remaining"] == "7"
        assert "inner.example" not in told(response)


@pytest.mark.parametrize(
    "media",
    [
        "application/json; charset=utf-16; charset=utf-8",
        'application/json; charset=utf-8; x="; charset=utf-7"',
        "application/json;charset=UTF-8;boundary=x",
        "application/vnd.api+json",
        "Application/JSON",
    ],
)
def test_the_type_of_a_body_that_was_read_is_our_own(tmp_path: Path, media: str) -> None:
    async def respond(request: UpstreamRequest, send: Send) -> None:
        await send_response(send, chat_completion("ok"))

    upstream = Upstream(respond)
    with screened(tmp_path, upstream) as proxy:
        for policy in ("p", "none"):
            response = httpx.post(
                f"{proxy.url}/v1/chat/completions",
                content=b'{"model": "m", "messages": []}',
                headers=[("content-type", media), ("x-guard-policy", policy)],
            )
            assert response.status_code == 200
            sent = [v for k, v in upstream.requests[-1].headers if k == "content-type"]
            assert sent == ["application/json"]


def test_the_type_of_a_form_has_the_boundary_that_was_read(tmp_path: Path) -> None:
    async def respond(request: UpstreamRequest, send: Send) -> None:
        await send_response(send, {"data": []})

    form = b'--a\r\ncontent-disposition: form-data; name="prompt"\r\n\r\nhello\r\n--a--\r\n'
    upstream = Upstream(respond)
    with screened(tmp_path, upstream) as proxy:
        for media, kept in (
            ("multipart/form-data; boundary=a; charset=x", "multipart/form-data; boundary=a"),
            ('multipart/form-data; boundary="a"', "multipart/form-data; boundary=a"),
        ):
            url, headers = f"{proxy.url}/v1/images/edits", {"content-type": media}
            assert httpx.post(url, content=form, headers=headers).status_code == 200
            assert upstream.requests[-1].header("content-type") == kept
            assert upstream.requests[-1].body == form


def test_packed_bodies_are_sent_on_as_they_were_read(tmp_path: Path) -> None:
    import gzip
    import json

    async def respond(request: UpstreamRequest, send: Send) -> None:
        await send_response(send, chat_completion("ok"))

    upstream = Upstream(respond)
    content = json.dumps(BODY).encode()
    with screened(tmp_path, upstream) as proxy:
        headers = {"content-type": "application/json", "content-encoding": "gzip"}
        response = httpx.post(
            f"{proxy.url}/v1/chat/completions", content=gzip.compress(content), headers=headers
        )
    assert response.status_code == 200
    (request,) = upstream.requests
    assert request.body == content and request.header("content-encoding") is None
    assert request.header("content-length") == str(len(content))
