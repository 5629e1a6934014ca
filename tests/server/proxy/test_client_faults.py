"""Clients that misbehave, limits, and screens that fail."""

from __future__ import annotations

import asyncio
import gc
import socket
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.types import Send

from guard.errors import GuardFailed
from server.screening.exchange import ScreenedExchange
from tests.server.proxy.screened import BODY, post
from tests.server.proxy.stand import (
    Proxy,
    Upstream,
    UpstreamRequest,
    chat_chunk,
    chat_completion,
    chat_stream,
    proxied,
    send_chunk,
    send_head,
    send_response,
    served,
)
from tests.server.screen_configs import screen_config

SCREENS = screen_config()


def raw(proxy: Proxy, content: bytes, *, patience_s: float = 10) -> bytes:
    """What comes back for these bytes on a connection."""
    host, port = proxy.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=patience_s) as wire:
        wire.sendall(content)
        response = b""
        try:
            while received := wire.recv(65536):
                response += received
        except (TimeoutError, ConnectionError):
            pass
    return response


async def endless(request: UpstreamRequest, send: Send) -> None:
    await send_head(send)
    while True:
        await send_chunk(send, chat_chunk({"content": "on and "}))
        await asyncio.sleep(0.02)


def test_a_client_that_hangs_up_takes_its_upstream_request_with_it(tmp_path: Path) -> None:
    for config in ("", SCREENS):
        upstream = Upstream(endless)
        folder = tmp_path / str(len(config))
        folder.mkdir()
        with served(upstream) as port, proxied(folder, config, port) as proxy:
            body = {**BODY, "stream": True}
            with httpx.stream("POST", f"{proxy.url}/v1/chat/completions", json=body) as response:
                next(response.iter_bytes())
            begun = time.monotonic()
            assert upstream.hung_up.wait(5)
            assert time.monotonic() - begun < 1.0
            assert len(proxy.audit_lines()) == 1


def test_requests_of_clients_that_hung_up_do_not_stay_in_memory(tmp_path: Path) -> None:
    upstream, before = Upstream(endless), _exchanges()
    with served(upstream) as port, proxied(tmp_path, SCREENS, port) as proxy:
        body = {**BODY, "stream": True}
        for number in range(1, 4):
            with httpx.stream("POST", f"{proxy.url}/v1/chat/completions", json=body) as response:
                next(response.iter_bytes())
            until = time.monotonic() + 20
            while len(proxy.audit_lines()) < number and time.monotonic() < until:
                time.sleep(0.05)
        until = time.monotonic() + 20
        while (held := _exchanges()) > before and time.monotonic() < until:
            time.sleep(0.1)
    assert held <= before


def _exchanges() -> int:
    gc.collect()
    return sum(type(each) is ScreenedExchange for each in gc.get_objects())


def test_a_client_that_hangs_up_before_the_answer_begins(tmp_path: Path) -> None:
    async def never(request: UpstreamRequest, send: Send) -> None:
        await asyncio.sleep(30)

    for config in ("", SCREENS):
        upstream = Upstream(never)
        folder = tmp_path / str(len(config))
        folder.mkdir()
        with served(upstream) as port, proxied(folder, config, port) as proxy:
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(f"{proxy.url}/v1/chat/completions", json=BODY, timeout=0.4)
            assert upstream.hung_up.wait(5)
            assert len(proxy.audit_lines()) == 1


def _post(head: str, body: bytes = b"") -> bytes:
    return (
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        f"{head}\r\n"
    ).encode() + body


def test_both_lengths_are_no_way_in(tmp_path: Path) -> None:
    async def respond(request: UpstreamRequest, send: Send) -> None:
        await send_response(send, chat_completion("ok"))

    upstream = Upstream(respond)
    for config in ("", SCREENS):
        folder = tmp_path / str(len(config))
        folder.mkdir()
        with served(upstream) as port, proxied(folder, config, port) as proxy:
            smuggled = b"0\r\n\r\nGET /admin HTTP/1.1\r\nhost: x\r\n\r\n"
            both = f"content-length: {len(smuggled)}\r\ntransfer-encoding: chunked\r\n"
            raw(proxy, _post(both, smuggled), patience_s=1)
            raw(proxy, _post("content-length: 2\r\ncontent-length: 20\r\n", b"{}"), patience_s=1)
    assert not any("admin" in request.path for request in upstream.requests)


def test_bodies_that_are_too_large_too_deep_or_too_slow(tmp_path: Path) -> None:
    async def respond(request: UpstreamRequest, send: Send) -> None:
        await send_response(send, chat_completion("ok"))

    upstream = Upstream(respond)
    limits = "\n[proxy]\nmax_body_bytes = 1000000\n"
    screens = screen_config(server="request_timeout_s = 0.5")
    with served(upstream) as port, proxied(tmp_path, screens + limits, port) as proxy:
        large = raw(proxy, _post("content-length: 100000000\r\n", b"{"), patience_s=2)
        assert b" 413 " in large.splitlines()[0]
        deep = b'{"a":' + b"[" * 10_000 + b"]" * 10_000 + b"}"
        assert b"invalid_json" in raw(
            proxy, _post(f"content-length: {len(deep)}\r\nconnection: close\r\n", deep)
        )
        slow = raw(proxy, _post("content-length: 1000\r\n", b"{"), patience_s=3)
        assert b" 408 " in slow.splitlines()[0]
        assert not upstream.requests
        assert post(proxy).status_code == 200
    (tmp_path / "bare").mkdir()
    with served(upstream) as port, proxied(tmp_path / "bare", limits, port) as proxy:
        chunks = b"100000\r\n" + b"x" * 0x100000 + b"\r\n0\r\n\r\n"
        response = raw(proxy, _post("transfer-encoding: chunked\r\n", chunks), patience_s=3)
        assert b" 413 " in response.splitlines()[0]


def test_more_than_can_wait_are_told_to_come_back(tmp_path: Path) -> None:
    async def slow(request: UpstreamRequest, send: Send) -> None:
        await asyncio.sleep(1.0)
        await send_response(send, chat_completion("ok"))

    limits = "[proxy]\nmax_requests = 1\nqueue_limit = 1\n"
    with served(Upstream(slow)) as port, proxied(tmp_path, limits, port) as proxy:

        async def three() -> list[httpx.Response]:
            async with httpx.AsyncClient(timeout=20) as client:
                url = f"{proxy.url}/v1/chat/completions"
                return await asyncio.gather(*(client.post(url, json=BODY) for _ in range(3)))

        responses = asyncio.run(three())
        assert sorted(response.status_code for response in responses) == [200, 200, 429]
        refused = next(response for response in responses if response.status_code == 429)
        assert refused.headers["retry-after"] == "1"


def test_screens_that_fail_fail_closed_unless_the_policy_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: Any) -> Any:
        raise GuardFailed("the encoder is gone")

    upstream = Upstream(chat_stream(["hello"]))
    for number, (config, status) in enumerate(
        [(SCREENS, 500), (screen_config(policy='on_error = "open"'), 200)]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        with served(upstream) as port, proxied(folder, config, port) as proxy:
            monkeypatch.setattr(proxy.app.context.screener, "read", broken)
            response = post(proxy, stream=True)
            assert response.status_code == status
            assert len(upstream.requests) == number
            assert proxy.audit_lines()[0]["outcome"] == "error"
