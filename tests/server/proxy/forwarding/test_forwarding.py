"""What goes through unchanged, and what does not go through."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.types import Send

from tests.server.proxy.stand import (
    Proxy,
    Upstream,
    UpstreamRequest,
    chat_completion,
    chat_stream,
    proxied,
    send_response,
    served,
)


async def _echo(request: UpstreamRequest, send: Send) -> None:
    await send_response(
        send,
        request.body or b"{}",
        headers={"x-kept": "1", "connection": "x-hop", "x-hop": "1"},
    )


@pytest.fixture
def upstream() -> Upstream:
    return Upstream(_echo)


@pytest.fixture
def proxy(tmp_path: Path, upstream: Upstream) -> Iterator[Proxy]:
    with served(upstream) as port, proxied(tmp_path, "", port) as running:
        yield running


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/embeddings"),
        ("POST", "/v1/messages"),
        ("POST", "/v1/audio/transcriptions"),
        ("GET", "/v1/models"),
        ("DELETE", "/v1/files/file-1"),
        ("PUT", "/something/nobody%2Fknows?a=1&a=2"),
    ],
)
def test_every_route_goes_through(proxy: Proxy, upstream: Upstream, method: str, path: str) -> None:
    body = b'{"b":1, "a" : 2}' if method in {"POST", "PUT"} else b""
    response = httpx.request(method, proxy.url + path, content=body)
    (request,) = upstream.requests
    assert (request.method, request.path, request.body) == (method, path, body)
    assert response.content == (body or b"{}")
    assert response.headers["x-kept"] == "1"
    assert "x-hop" not in response.headers


def test_headers_pass_in_order_repeated_ones_too(proxy: Proxy, upstream: Upstream) -> None:
    sent = [("x-a", "1"), ("x-a", "2"), ("openai-beta", "x"), ("connection", "close, x-mine")]
    httpx.post(f"{proxy.url}/v1/files", headers=[*sent, ("x-mine", "hop")], content=b"abc")
    (request,) = upstream.requests
    assert [pair for pair in request.headers if pair[0] in {"x-a", "openai-beta"}] == sent[:3]
    assert request.header("x-mine") is None


def test_clients_keys_stay_here_and_the_upstreams_go_there(
    tmp_path: Path, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODEL_KEY", "sk-upstream")
    mine = hashlib.sha256(b"sk-user").hexdigest()
    with served(upstream) as port:
        text = (
            f'[[upstreams]]\nname = "u"\nurl = "http://127.0.0.1:{port}/v1"\n'
            f'key_env = "MODEL_KEY"\n[[keys]]\nhash = "sha256:{mine}"\ntenant = "me"\n'
        )
        with proxied(tmp_path, text, port) as proxy:
            refused = httpx.post(f"{proxy.url}/v1/chat/completions", json={})
            headers = {
                "authorization": "Bearer sk-user",
                "x-api-key": "sk-user",
                "cookie": "a=b",
            }
            response = httpx.post(f"{proxy.url}/v1/chat/completions", json={}, headers=headers)
    assert refused.status_code == 401
    assert response.status_code == 200
    (request,) = upstream.requests
    assert request.path == "/v1/chat/completions"
    assert request.header("authorization") == "Bearer sk-upstream"
    assert "sk-user" not in str(request.headers)
    assert request.header("cookie") is None
    assert "sk-upstream" not in str(response.headers)


def test_an_upstream_that_refuses_its_credential_does_not_show_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODEL_KEY", "sk-upstream")

    async def refuse(request: UpstreamRequest, send: Send) -> None:
        await send_response(
            send, {"error": f"wrong: {request.header('authorization')}"}, status=401
        )

    with served(Upstream(refuse)) as port:
        text = (
            f'[[upstreams]]\nname = "u"\nurl = "http://127.0.0.1:{port}"\nkey_env = "MODEL_KEY"\n'
        )
        with proxied(tmp_path, text) as proxy:
            response = httpx.post(f"{proxy.url}/v1/chat/completions", json={})
    assert response.status_code == 502
    assert response.json()["error"]["code"] == "upstream_refused_credential"
    assert "sk-upstream" not in response.text


def test_a_stream_goes_through_byte_for_byte(tmp_path: Path) -> None:
    upstream = Upstream(chat_stream(["a", "b"]))
    with served(upstream) as port:
        bare = httpx.post(f"http://127.0.0.1:{port}/v1/chat/completions", json={})
        with proxied(tmp_path, "", port) as proxy:
            response = httpx.post(f"{proxy.url}/v1/chat/completions", json={})
    assert response.content == bare.content
    assert response.headers["x-guard-policy"] == "none"


@pytest.mark.parametrize("path", ["/v1/../admin", "/v1/%2e%2e/admin", "/v1/.%2E/x", "/../x"])
def test_paths_that_climb_are_refused(proxy: Proxy, upstream: Upstream, path: str) -> None:
    import socket

    host, port = proxy.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as wire:
        wire.sendall(f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
        response = b""
        while received := wire.recv(65536):
            response += received
    assert b" 400 " in response.splitlines()[0]
    assert not upstream.requests


def test_each_request_has_an_audit_line(proxy: Proxy) -> None:
    httpx.post(
        f"{proxy.url}/v1/chat/completions",
        json=chat_completion("x"),
        headers={"x-request-id": "r1"},
    )
    (line,) = proxy.audit_lines()
    assert (line["request_id"], line["policy"], line["outcome"]) == ("r1", "none", "pass")
    metrics = httpx.get(f"{proxy.url}/metrics").text
    assert 'inference_guard_verdicts_total{model="",outcome="pass",policy="none"} 1.0' in metrics
    assert 'path="/v1/chat/completions",status="200"' in metrics
    assert 'inference_guard_upstream_ready{upstream="u0"} 1.0' in metrics


def test_who_watches_needs_no_key_and_is_answered_here(proxy: Proxy, upstream: Upstream) -> None:
    assert httpx.get(f"{proxy.url}/health").json() == {"status": "ok"}
    ready: dict[str, Any] = httpx.get(f"{proxy.url}/ready").json()
    assert ready["upstreams"]["u0"]["ready"] is True
    policies = httpx.get(f"{proxy.url}/guard/v1/policies").json()
    assert [policy["id"] for policy in policies["data"]] == ["none"]
    assert not upstream.requests


def test_a_large_body_is_passed_on_as_it_comes(proxy: Proxy, upstream: Upstream) -> None:
    content = bytes(range(256)) * 40_000
    response = httpx.post(
        f"{proxy.url}/v1/files", content=content, headers={"content-type": "application/x"}
    )
    assert response.status_code == 200
    assert upstream.requests[0].body == content
    assert json.loads(httpx.get(f"{proxy.url}/health").content)["status"] == "ok"
