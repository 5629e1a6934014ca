"""Bounds on connections: heads of requests, their time, and their number."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from server.lifecycle.connections import ConnectionLimits
from tests.server.proxy.stand import served

LIMITS = ConnectionLimits(
    head_bytes=4096, headers=20, head_s=0.5, read_s=0.5, connections=8, reserve=3
)


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with the path; `/slow` after a while, `/large` with 10 MB."""
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": f"{message['type']}.complete"})
            if message["type"] == "lifespan.shutdown":
                return
    more = True
    while more:
        message = await receive()
        more = message.get("more_body", False)
    if scope["path"] == "/slow":
        await asyncio.sleep(5)
    body = b"x" * 10_000_000 if scope["path"] == "/large" else scope["path"].encode()
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@contextmanager
def server(limits: ConnectionLimits = LIMITS) -> Iterator[tuple[str, int]]:
    with served(app, limits) as port:
        yield "127.0.0.1", port


def connect(address: tuple[str, int]) -> socket.socket:
    return socket.create_connection(address, 10)


def rest_of(wire: socket.socket, patience_s: float = 10) -> bytes:
    """What comes until the server hangs up."""
    wire.settimeout(patience_s)
    received = b""
    with suppress(ConnectionError):
        while part := wire.recv(65536):
            received += part
    return received


def get(address: tuple[str, int], path: str) -> bytes:
    with connect(address) as wire:
        wire.sendall(f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
        return rest_of(wire)


def status_of(answer: bytes) -> int:
    return int(answer.split()[1])


def error_of(answer: bytes) -> Any:
    return json.loads(answer.partition(b"\r\n\r\n")[2])["error"]


HEAD = b"GET / HTTP/1.1\r\nhost: x\r\n"


@pytest.mark.parametrize(
    "head",
    [
        HEAD + b"x: " + b"a" * 5000 + b"\r\n\r\n",
        HEAD + b"x: " + b"a" * 300_000,
        HEAD + b"x: 1\r\n" * 21 + b"\r\n",
        b"GET /" + b"a" * 5000 + b" HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET /" + b"a" * 300_000,
        HEAD + b"x" * 300_000,
    ],
)
def test_a_head_that_is_too_large_is_refused(head: bytes) -> None:
    with server() as address, connect(address) as wire:
        with suppress(ConnectionError):
            wire.sendall(head)
        answer = rest_of(wire)
        assert status_of(answer) == 431
        assert error_of(answer)["code"] == "headers_too_large"


@pytest.mark.parametrize(
    "body",
    [
        b"1\r\na\r\n0\r\nx: " + b"a" * 20_000,  # a trailer
        b"1\r\na\r\n0\r\n" + b"x: 1\r\n" * 1000,
        b"1;x=" + b"a" * 20_000,  # an extension of a chunk
    ],
)
def test_what_stands_around_a_body_is_bounded_too(body: bytes) -> None:
    with server() as address, connect(address) as wire:
        wire.sendall(b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
        time.sleep(0.05)
        with suppress(ConnectionError):
            wire.sendall(body)
        assert b" 200 " not in rest_of(wire)


def test_bodies_in_many_chunks_are_no_heads() -> None:
    with server() as address, connect(address) as wire:
        head = b"POST /ok HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
        wire.sendall(head + b"transfer-encoding: chunked\r\n\r\n")
        for _ in range(20):
            wire.sendall(b"1\r\na\r\n" * 1000)
        wire.sendall(b"0\r\n\r\n")
        assert rest_of(wire).endswith(b"/ok")
    with server() as address, connect(address) as wire:
        wire.sendall(head + b"content-length: 100000\r\n\r\n")
        for _ in range(10):
            wire.sendall(b"a" * 10_000)
        assert rest_of(wire).endswith(b"/ok")


@pytest.mark.parametrize(
    ("start", "status"),
    [(b"", 0), (b"GET / HT", 408), (HEAD, 408), (b"\r\n", 408)],
)
def test_a_head_that_does_not_come_is_not_waited_for(start: bytes, status: int) -> None:
    with server() as address, connect(address) as wire:
        began = time.monotonic()
        wire.sendall(start)
        answer = rest_of(wire)
        assert 0.3 < time.monotonic() - began < 4
        assert (status_of(answer) if answer else 0) == status


def test_dribbling_a_head_gives_no_more_time() -> None:
    with server() as address, connect(address) as wire:
        began = time.monotonic()
        with suppress(ConnectionError):
            for _ in range(40):
                wire.sendall(b"\r\n")
                time.sleep(0.05)
        rest_of(wire)
        assert time.monotonic() - began < 4


def test_a_second_head_has_as_much_time_as_the_first() -> None:
    with server() as address, connect(address) as wire:
        for _ in range(3):
            wire.sendall(HEAD)
            time.sleep(0.3)
            wire.sendall(b"\r\n")
            assert wire.recv(1000).startswith(b"HTTP/1.1 200")
        wire.sendall(HEAD)
        assert status_of(rest_of(wire)) == 408


def test_those_that_send_nothing_make_place_for_others() -> None:
    limits = ConnectionLimits(connections=8, reserve=3, head_s=30)
    with server(limits) as address, ExitStack() as stack:
        for _ in range(60):
            wire = stack.enter_context(connect(address))
            wire.sendall(b"GET / HT")
        assert get(address, "/other").endswith(b"/other")


def test_probes_are_answered_where_all_places_are_taken() -> None:
    with server() as address, ExitStack() as stack:
        for _ in range(LIMITS.connections):
            wire = stack.enter_context(connect(address))
            wire.sendall(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n")
        time.sleep(0.3)
        refused = get(address, "/v1/models")
        assert status_of(refused) == 503
        assert error_of(refused)["code"] == "service_unavailable"
        assert get(address, "/health").endswith(b"/health")
        for _ in range(30):  # they take the reserve and say nothing
            stack.enter_context(connect(address))
        assert get(address, "/health").endswith(b"/health")


def test_files_that_others_need_are_left_to_them() -> None:
    limits = ConnectionLimits(files=5)  # a test has more than those open
    with server(limits) as address, connect(address) as wire:
        wire.sendall(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n")
        time.sleep(0.1)
        assert status_of(get(address, "/v1/models")) == 503
        assert get(address, "/health").endswith(b"/health")


def test_a_client_that_does_not_read_is_cut_off() -> None:
    with server() as address, connect(address) as wire:
        wire.sendall(b"GET /large HTTP/1.1\r\nhost: x\r\n\r\n")
        time.sleep(2)
        assert len(rest_of(wire)) < 10_000_000


@pytest.mark.parametrize(
    "head",
    [
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999999999999999\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\nx: a\x00b\r\n\r\n",
        b"nonsense\r\n\r\n",
    ],
)
def test_what_is_not_http_is_told_in_the_usual_envelope(head: bytes) -> None:
    with server() as address, connect(address) as wire:
        wire.sendall(head)
        answer = rest_of(wire)
        assert status_of(answer) == 400
        assert error_of(answer)["code"] == "invalid_http"


def test_limits_by_the_files_of_the_process() -> None:
    proxy = ConnectionLimits.of_process(has_upstreams=True)
    serve = ConnectionLimits.of_process(has_upstreams=False)
    assert 8 <= proxy.connections <= serve.connections
    assert 2 * proxy.connections + proxy.reserve < proxy.files + proxy.reserve
