"""Upstreams that misbehave: a clear error, and a finished audit line."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.types import Send

from server.screening.texts.screener import Screener
from tests.server.proxy.screened import post
from tests.server.proxy.stand import (
    Upstream,
    UpstreamRequest,
    chat_chunk,
    chat_completion,
    proxied,
    send_chunk,
    send_head,
    send_response,
    served,
)
from tests.server.screen_configs import screen_config

SCREENS = screen_config()
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def _closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


async def _raw_server(content: bytes) -> asyncio.Server:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(content)
        await writer.drain()
        writer.close()

    return await asyncio.start_server(handle, "127.0.0.1", 0)


class _RawUpstream:
    """A server that answers any request with these bytes and hangs up."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def __enter__(self) -> int:
        self.loop = asyncio.new_event_loop()
        self.server = self.loop.run_until_complete(_raw_server(self.content))
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        return int(self.server.sockets[0].getsockname()[1])

    def __exit__(self, *_: object) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)


@pytest.mark.parametrize("config", ["", SCREENS])
def test_an_upstream_that_is_down(tmp_path: Path, config: str) -> None:
    with proxied(tmp_path, config, _closed_port()) as proxy:
        response = post(proxy)
        assert response.status_code == 502
        assert response.json()["error"]["code"] == "upstream_unreachable"
        assert proxy.audit_lines()[0]["outcome"] == "error"


def test_another_upstream_is_asked_where_one_cannot_be_reached(tmp_path: Path) -> None:
    async def respond(request: UpstreamRequest, send: Send) -> None:
        await send_response(send, chat_completion("ok"))

    with served(Upstream(respond)) as up, proxied(tmp_path, "", _closed_port(), up) as proxy:
        assert [post(proxy).status_code for _ in range(12)] == [200] * 12


def test_one_that_keeps_failing_is_left_alone(tmp_path: Path) -> None:
    text = (
        f'[[upstreams]]\nname = "u"\nurl = "http://127.0.0.1:{_closed_port()}"\nfailures = 2\n'
        "cooldown_s = 30\n"
    )
    with proxied(tmp_path, text) as proxy:
        codes = [post(proxy).json()["error"]["code"] for _ in range(3)]
        assert codes == ["upstream_unreachable", "upstream_unreachable", "service_unavailable"]
        response = post(proxy)
        assert response.status_code == 503
        assert int(response.headers["retry-after"]) >= 1
        assert httpx.get(f"{proxy.url}/ready").status_code == 503


@pytest.mark.parametrize("config", ["", SCREENS])
def test_an_upstream_that_does_not_answer(tmp_path: Path, config: str) -> None:
    async def silent(request: UpstreamRequest, send: Send) -> None:
        await asyncio.sleep(30)

    upstream = Upstream(silent)
    config += "\n[proxy]\nfirst_byte_timeout_s = 0.3\n"
    with served(upstream) as port, proxied(tmp_path, config, port) as proxy:
        response = post(proxy)
        assert response.status_code == 504
        assert response.json()["error"]["code"] == "upstream_timeout"
        assert upstream.hung_up.wait(5)
        assert proxy.audit_lines()[0]["outcome"] == "error"


@pytest.mark.parametrize("config", ["", SCREENS])
def test_a_stream_that_stops_in_its_middle(tmp_path: Path, config: str) -> None:
    async def stops(request: UpstreamRequest, send: Send) -> None:
        await send_head(send)
        await send_chunk(send, chat_chunk({"content": "well"}))
        await asyncio.sleep(30)

    config += "\n[proxy]\nchunk_timeout_s = 0.3\n"
    with served(Upstream(stops)) as port, proxied(tmp_path, config, port) as proxy:
        response = post(proxy, stream=True)
        last = json.loads(response.text.strip().split("\n\n")[-1].removeprefix("data: "))
        assert last["error"]["code"] == "upstream_timeout"
        assert "[DONE]" not in response.text
        assert "well" in response.text, "what was read of it is not lost"
        assert proxy.audit_lines()[0]["outcome"] == "error"


def _chunked(content: bytes) -> bytes:
    return f"{len(content):x}\r\n".encode() + content + b"\r\n"


@pytest.mark.parametrize("config", ["", SCREENS])
def test_an_upstream_that_dies_in_the_middle_of_a_stream(tmp_path: Path, config: str) -> None:
    content = HEAD + _chunked(chat_chunk({"content": "well"}))
    with _RawUpstream(content) as port, proxied(tmp_path, config, port) as proxy:
        response = post(proxy, stream=True)
        assert '"upstream_failed"' in response.text
        assert "[DONE]" not in response.text
        assert "well" in response.text
        assert proxy.audit_lines()[0]["outcome"] == "error"


def test_one_that_dies_in_the_middle_of_an_event_is_cut(tmp_path: Path) -> None:
    content = HEAD + _chunked(b'data: {"choices": [')
    with _RawUpstream(content) as port, proxied(tmp_path, "", port) as proxy:
        with pytest.raises(httpx.RemoteProtocolError):
            post(proxy, stream=True)
        assert proxy.audit_lines()[0]["outcome"] == "error"


@pytest.mark.parametrize("config", ["", SCREENS])
@pytest.mark.parametrize(
    "content",
    [
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n{}",
        b"garbage\r\n\r\n",
        b"",
    ],
)
def test_an_answer_that_is_no_http(tmp_path: Path, config: str, content: bytes) -> None:
    with _RawUpstream(content) as port, proxied(tmp_path, config, port) as proxy:
        try:
            response = post(proxy)
        except httpx.RemoteProtocolError:
            assert config == "" and content.startswith(b"HTTP"), "only half an answer is cut"
        else:
            assert response.status_code == 502
            assert response.json()["error"]["code"] == "upstream_failed"
        assert proxy.audit_lines()[0]["outcome"] == "error"


@pytest.mark.parametrize(
    ("body", "media"),
    [
        (b'{"choices": [', "application/json"),
        (b"\xff\xfe", "application/json"),
        (b"hello", "text/plain"),
        (b"<html>", "text/html"),
        (b"[" * 100_000, "application/json"),
    ],
)
def test_an_answer_that_cannot_be_read_does_not_pass(
    tmp_path: Path, body: bytes, media: str
) -> None:
    async def respond(request: UpstreamRequest, send: Send) -> None:
        await send_response(send, body, media=media)

    with served(Upstream(respond)) as port, proxied(tmp_path, SCREENS, port) as proxy:
        response = post(proxy)
        assert response.status_code == 502
        assert response.json()["error"]["code"] == "unreadable_answer"
        assert proxy.audit_lines()[0]["outcome"] == "error"


def test_an_answer_that_is_packed_does_not_pass_unread(tmp_path: Path) -> None:
    async def respond(request: UpstreamRequest, send: Send) -> None:
        assert request.header("accept-encoding") == "identity"
        await send_response(send, b"\x1f\x8b", headers={"content-encoding": "gzip"})

    with served(Upstream(respond)) as port, proxied(tmp_path, SCREENS, port) as proxy:
        assert post(proxy).json()["error"]["code"] == "unreadable_answer"


@pytest.mark.parametrize("broken", [b"data: {half\n\n", b"data: [1]\n\n", b"data: \xff\n\n"])
def test_a_broken_stream_ends_with_an_error(tmp_path: Path, broken: bytes) -> None:
    async def respond(request: UpstreamRequest, send: Send) -> None:
        await send_head(send)
        await send_chunk(send, chat_chunk({"role": "assistant", "content": ""}))
        await send_chunk(send, broken)
        await send_chunk(send, b"data: [DONE]\n\n", more=False)

    with served(Upstream(respond)) as port, proxied(tmp_path, SCREENS, port) as proxy:
        response = post(proxy, stream=True)
        assert '"unreadable_answer"' in response.text
        assert "[DONE]" not in response.text
        assert proxy.audit_lines()[0]["outcome"] == "error"


def test_ten_megabytes_in_one_event_are_too_many(tmp_path: Path) -> None:
    async def respond(request: UpstreamRequest, send: Send) -> None:
        await send_head(send)
        await send_chunk(send, b"data: " + b"x" * 10_000_000, more=False)

    with served(Upstream(respond)) as port:
        with proxied(tmp_path, SCREENS, port) as proxy:
            assert "unreadable_answer" in post(proxy, stream=True).text
        (tmp_path / "bare").mkdir()
        with proxied(tmp_path / "bare", "", port) as proxy:
            assert len(post(proxy, stream=True).content) == 10_000_006


def test_how_long_an_answer_is_read_is_not_the_upstreams_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Screener.read

    async def slow(self: Screener, texts: list[str], *more: Any) -> Any:
        if "an answer" in texts:
            await asyncio.sleep(0.8)
        return await read(self, texts, *more)

    async def respond(request: UpstreamRequest, send: Send) -> None:
        await send_response(send, chat_completion("an answer"))

    monkeypatch.setattr(Screener, "read", slow)
    limits = "[proxy]\ntotal_timeout_s = 0.6\n"
    with served(Upstream(respond)) as port, proxied(tmp_path, SCREENS + limits, port) as proxy:
        assert post(proxy).status_code == 200


def test_a_mistake_of_our_own_is_not_the_upstreams(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Screener.read

    async def wrong(self: Screener, texts: list[str], *more: Any) -> Any:
        if "an answer" in texts:
            raise ValueError("a mistake")
        return await read(self, texts, *more)

    async def respond(request: UpstreamRequest, send: Send) -> None:
        await send_response(send, chat_completion("an answer"))

    monkeypatch.setattr(Screener, "read", wrong)
    with served(Upstream(respond)) as port, proxied(tmp_path, SCREENS, port) as proxy:
        refused = post(proxy)
        assert refused.status_code == 500
        assert "a mistake" not in refused.text
        assert "upstream" not in refused.text
