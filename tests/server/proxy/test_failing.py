"""Upstreams and clients that misbehave: a clear error, and a finished audit line."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.types import Send

from server.screening.texts.screener import Screener
from tests.server.proxy.stand import (
    Got,
    Proxy,
    Upstream,
    begin,
    chat,
    chunk,
    piece,
    proxied,
    reply,
    served,
    spoken,
)

SCREENS = """
[server]
default_policy = "p"
[[patterns]]
name = "list"
source = "secrets"
[policies.p]
guards = ["list"]
action = "block"
"""
BODY = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
Answer = Callable[[Got, Send], Awaitable[None]]


def ask(proxy: Proxy, **more: Any) -> httpx.Response:
    return httpx.post(f"{proxy.url}/v1/chat/completions", json={**BODY, **more}, timeout=20)


def raw(proxy: Proxy, content: bytes, *, patience_s: float = 10) -> bytes:
    """What comes back for these bytes on a connection."""
    host, port = proxy.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=patience_s) as wire:
        wire.sendall(content)
        answer = b""
        try:
            while received := wire.recv(65536):
                answer += received
        except (TimeoutError, ConnectionError):
            pass
    return answer


async def _raw_server(content: bytes, *, linger_s: float = 0.0) -> asyncio.Server:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(content)
        await writer.drain()
        await asyncio.sleep(linger_s)
        writer.close()

    return await asyncio.start_server(handle, "127.0.0.1", 0)


class _RawUpstream:
    """Answers any request with these bytes and hangs up."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def __enter__(self) -> int:
        import threading

        self.loop = asyncio.new_event_loop()
        self.server = self.loop.run_until_complete(_raw_server(self.content))
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        return int(self.server.sockets[0].getsockname()[1])

    def __exit__(self, *_: object) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)


@pytest.mark.parametrize("config", ["", SCREENS])
def test_an_upstream_that_is_down(tmp_path: Path, config: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with proxied(tmp_path, config, port) as proxy:
        answer = ask(proxy)
        assert answer.status_code == 502
        assert answer.json()["error"]["code"] == "upstream_unreachable"
        assert proxy.lines()[0]["outcome"] == "error"


def test_another_upstream_is_asked_where_one_cannot_be_reached(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        down = free.getsockname()[1]

    async def answer(got: Got, send: Send) -> None:
        await reply(send, chat("ok"))

    with served(Upstream(answer)) as up, proxied(tmp_path, "", down, up) as proxy:
        assert [ask(proxy).status_code for _ in range(12)] == [200] * 12


def test_one_that_keeps_failing_is_left_alone(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        down = free.getsockname()[1]
    text = (
        f'[[upstreams]]\nname = "u"\nurl = "http://127.0.0.1:{down}"\nfailures = 2\n'
        "cooldown_s = 30\n"
    )
    with proxied(tmp_path, text) as proxy:
        codes = [ask(proxy).json()["error"]["code"] for _ in range(3)]
        assert codes == ["upstream_unreachable", "upstream_unreachable", "service_unavailable"]
        answer = ask(proxy)
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) >= 1
        assert httpx.get(f"{proxy.url}/ready").status_code == 503


@pytest.mark.parametrize("config", ["", SCREENS])
def test_an_upstream_that_does_not_answer(tmp_path: Path, config: str) -> None:
    async def silent(got: Got, send: Send) -> None:
        await asyncio.sleep(30)

    upstream = Upstream(silent)
    config += "\n[proxy]\nfirst_byte_timeout_s = 0.3\n"
    with served(upstream) as port, proxied(tmp_path, config, port) as proxy:
        answer = ask(proxy)
        assert answer.status_code == 504
        assert answer.json()["error"]["code"] == "upstream_timeout"
        assert upstream.hung_up.wait(5)
        assert proxy.lines()[0]["outcome"] == "error"


@pytest.mark.parametrize("config", ["", SCREENS])
def test_a_stream_that_stops_in_its_middle(tmp_path: Path, config: str) -> None:
    async def stops(got: Got, send: Send) -> None:
        await begin(send)
        await piece(send, chunk({"content": "well"}))
        await asyncio.sleep(30)

    config += "\n[proxy]\nchunk_timeout_s = 0.3\n"
    with served(Upstream(stops)) as port, proxied(tmp_path, config, port) as proxy:
        answer = ask(proxy, stream=True)
        last = json.loads(answer.text.strip().split("\n\n")[-1].removeprefix("data: "))
        assert last["error"]["code"] == "upstream_timeout"
        assert "[DONE]" not in answer.text
        assert "well" in answer.text, "what was read of it is not lost"
        assert proxy.lines()[0]["outcome"] == "error"


HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def _chunked(content: bytes) -> bytes:
    return f"{len(content):x}\r\n".encode() + content + b"\r\n"


@pytest.mark.parametrize("config", ["", SCREENS])
def test_an_upstream_that_dies_in_the_middle_of_a_stream(tmp_path: Path, config: str) -> None:
    content = HEAD + _chunked(chunk({"content": "well"}))
    with _RawUpstream(content) as port, proxied(tmp_path, config, port) as proxy:
        answer = ask(proxy, stream=True)
        assert '"upstream_failed"' in answer.text
        assert "[DONE]" not in answer.text
        assert "well" in answer.text
        assert proxy.lines()[0]["outcome"] == "error"


def test_one_that_dies_in_the_middle_of_an_event_is_cut(tmp_path: Path) -> None:
    content = HEAD + _chunked(b'data: {"choices": [')
    with _RawUpstream(content) as port, proxied(tmp_path, "", port) as proxy:
        with pytest.raises(httpx.RemoteProtocolError):
            ask(proxy, stream=True)
        assert proxy.lines()[0]["outcome"] == "error"


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
            answer = ask(proxy)
        except httpx.RemoteProtocolError:
            assert config == "" and content.startswith(b"HTTP"), "only half an answer is cut"
        else:
            assert answer.status_code == 502
            assert answer.json()["error"]["code"] == "upstream_failed"
        assert proxy.lines()[0]["outcome"] == "error"


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
    async def answer(got: Got, send: Send) -> None:
        await reply(send, body, media=media)

    with served(Upstream(answer)) as port, proxied(tmp_path, SCREENS, port) as proxy:
        told = ask(proxy)
        assert told.status_code == 502
        assert told.json()["error"]["code"] == "unreadable_answer"
        assert proxy.lines()[0]["outcome"] == "error"


def test_an_answer_that_is_packed_does_not_pass_unread(tmp_path: Path) -> None:
    async def answer(got: Got, send: Send) -> None:
        assert got.header("accept-encoding") == "identity"
        await reply(send, b"\x1f\x8b", headers={"content-encoding": "gzip"})

    with served(Upstream(answer)) as port, proxied(tmp_path, SCREENS, port) as proxy:
        assert ask(proxy).json()["error"]["code"] == "unreadable_answer"


@pytest.mark.parametrize("broken", [b"data: {half\n\n", b"data: [1]\n\n", b"data: \xff\n\n"])
def test_a_broken_stream_ends_with_an_error(tmp_path: Path, broken: bytes) -> None:
    async def answer(got: Got, send: Send) -> None:
        await begin(send)
        await piece(send, chunk({"role": "assistant", "content": ""}))
        await piece(send, broken)
        await piece(send, b"data: [DONE]\n\n", more=False)

    with served(Upstream(answer)) as port, proxied(tmp_path, SCREENS, port) as proxy:
        told = ask(proxy, stream=True)
        assert '"unreadable_answer"' in told.text
        assert "[DONE]" not in told.text
        assert proxy.lines()[0]["outcome"] == "error"


def test_ten_megabytes_in_one_event_are_too_many(tmp_path: Path) -> None:
    async def answer(got: Got, send: Send) -> None:
        await begin(send)
        await piece(send, b"data: " + b"x" * 10_000_000, more=False)

    with served(Upstream(answer)) as port:
        with proxied(tmp_path, SCREENS, port) as proxy:
            assert "unreadable_answer" in ask(proxy, stream=True).text
        (tmp_path / "bare").mkdir()
        with proxied(tmp_path / "bare", "", port) as proxy:
            assert len(ask(proxy, stream=True).content) == 10_000_006


def test_a_client_that_hangs_up_takes_its_upstream_request_with_it(tmp_path: Path) -> None:
    async def slow(got: Got, send: Send) -> None:
        await begin(send)
        while True:
            await piece(send, chunk({"content": "on and "}))
            await asyncio.sleep(0.02)

    for config in ("", SCREENS):
        upstream = Upstream(slow)
        folder = tmp_path / str(len(config))
        folder.mkdir()
        with served(upstream) as port, proxied(folder, config, port) as proxy:
            body = {**BODY, "stream": True}
            with httpx.stream("POST", f"{proxy.url}/v1/chat/completions", json=body) as answer:
                next(answer.iter_bytes())
            begun = time.monotonic()
            assert upstream.hung_up.wait(5)
            assert time.monotonic() - begun < 1.0
            assert len(proxy.lines()) == 1


def test_a_client_that_hangs_up_before_the_answer_begins(tmp_path: Path) -> None:
    async def never(got: Got, send: Send) -> None:
        await asyncio.sleep(30)

    for config in ("", SCREENS):
        upstream = Upstream(never)
        folder = tmp_path / str(len(config))
        folder.mkdir()
        with served(upstream) as port, proxied(folder, config, port) as proxy:
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(f"{proxy.url}/v1/chat/completions", json=BODY, timeout=0.4)
            assert upstream.hung_up.wait(5)
            assert len(proxy.lines()) == 1


def _post(head: str, body: bytes = b"") -> bytes:
    return (
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        f"{head}\r\n"
    ).encode() + body


def test_both_lengths_are_no_way_in(tmp_path: Path) -> None:
    async def answer(got: Got, send: Send) -> None:
        await reply(send, chat("ok"))

    upstream = Upstream(answer)
    for config in ("", SCREENS):
        folder = tmp_path / str(len(config))
        folder.mkdir()
        with served(upstream) as port, proxied(folder, config, port) as proxy:
            smuggled = b"0\r\n\r\nGET /admin HTTP/1.1\r\nhost: x\r\n\r\n"
            both = f"content-length: {len(smuggled)}\r\ntransfer-encoding: chunked\r\n"
            raw(proxy, _post(both, smuggled), patience_s=1)
            raw(proxy, _post("content-length: 2\r\ncontent-length: 20\r\n", b"{}"), patience_s=1)
    assert not any("admin" in got.path for got in upstream.got)


def test_bodies_that_are_too_large_too_deep_or_too_slow(tmp_path: Path) -> None:
    async def answer(got: Got, send: Send) -> None:
        await reply(send, chat("ok"))

    upstream = Upstream(answer)
    limits = "\n[proxy]\nmax_body_bytes = 1000000\n"
    screens = SCREENS.replace("[server]", "[server]\nrequest_timeout_s = 0.5")
    with served(upstream) as port, proxied(tmp_path, screens + limits, port) as proxy:
        large = raw(proxy, _post("content-length: 100000000\r\n", b"{"), patience_s=2)
        assert b" 413 " in large.splitlines()[0]
        deep = b'{"a":' + b"[" * 10_000 + b"]" * 10_000 + b"}"
        assert b"invalid_json" in raw(
            proxy, _post(f"content-length: {len(deep)}\r\nconnection: close\r\n", deep)
        )
        slow = raw(proxy, _post("content-length: 1000\r\n", b"{"), patience_s=3)
        assert b" 504 " in slow.splitlines()[0]
        assert not upstream.got
        assert ask(proxy).status_code == 200
    (tmp_path / "bare").mkdir()
    with served(upstream) as port, proxied(tmp_path / "bare", limits, port) as proxy:
        chunks = b"100000\r\n" + b"x" * 0x100000 + b"\r\n0\r\n\r\n"
        answer_ = raw(proxy, _post("transfer-encoding: chunked\r\n", chunks), patience_s=3)
        assert b" 413 " in answer_.splitlines()[0]


def test_more_than_can_wait_are_told_to_come_back(tmp_path: Path) -> None:
    async def slow(got: Got, send: Send) -> None:
        await asyncio.sleep(1.0)
        await reply(send, chat("ok"))

    limits = "[proxy]\nmax_requests = 1\nqueue_limit = 1\n"
    with served(Upstream(slow)) as port, proxied(tmp_path, limits, port) as proxy:

        async def three() -> list[httpx.Response]:
            async with httpx.AsyncClient(timeout=20) as client:
                url = f"{proxy.url}/v1/chat/completions"
                return await asyncio.gather(*(client.post(url, json=BODY) for _ in range(3)))

        answers = asyncio.run(three())
        assert sorted(each.status_code for each in answers) == [200, 200, 429]
        refused = next(each for each in answers if each.status_code == 429)
        assert refused.headers["retry-after"] == "1"


def test_screens_that_fail_fail_closed_unless_the_policy_says_so(tmp_path: Path) -> None:
    async def broken(*_: Any) -> Any:
        from guard.errors import GuardFailed

        raise GuardFailed("the encoder is gone")

    upstream = Upstream(spoken(["hello"]))
    for number, (config, status) in enumerate(
        [(SCREENS, 500), (SCREENS.replace('"block"', '"block"\non_error = "open"'), 200)]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        with served(upstream) as port, proxied(folder, config, port) as proxy:
            proxy.app.desk.screener.read = broken  # type: ignore[method-assign]
            answer = ask(proxy, stream=True)
            assert answer.status_code == status
            assert len(upstream.got) == number
            assert proxy.lines()[0]["outcome"] == "error"


def test_how_long_an_answer_is_read_is_not_the_upstreams_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Screener.read

    async def slow(self: Screener, texts: list[str], *more: Any) -> Any:
        if "an answer" in texts:
            await asyncio.sleep(0.8)
        return await own(self, texts, *more)

    async def answer(got: Got, send: Send) -> None:
        await reply(send, chat("an answer"))

    monkeypatch.setattr(Screener, "read", slow)
    limits = "[proxy]\ntotal_timeout_s = 0.6\n"
    with served(Upstream(answer)) as port, proxied(tmp_path, SCREENS + limits, port) as proxy:
        assert ask(proxy).status_code == 200


def test_a_mistake_of_our_own_is_not_the_upstreams(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Screener.read

    async def wrong(self: Screener, texts: list[str], *more: Any) -> Any:
        if "an answer" in texts:
            raise ValueError("a mistake")
        return await own(self, texts, *more)

    async def answer(got: Got, send: Send) -> None:
        await reply(send, chat("an answer"))

    monkeypatch.setattr(Screener, "read", wrong)
    with served(Upstream(answer)) as port, proxied(tmp_path, SCREENS, port) as proxy:
        refused = ask(proxy)
        assert refused.status_code == 500
        assert "a mistake" not in refused.text
        assert "upstream" not in refused.text
