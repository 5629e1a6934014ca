"""What opens a breaker: failures of the upstream, not those that one client can cause."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from contextlib import closing
from pathlib import Path

import httpx
import pytest
from starlette.types import Send

from guard.replicas.store import BreakerState
from server.proxy.forwarding.breaker import Breaker
from tests.server.proxy.screened import post
from tests.server.proxy.stand import (
    Proxy,
    Upstream,
    UpstreamRequest,
    chat_completion,
    proxied,
    send_response,
    served,
)
from tests.server.screen_configs import screen_config


def test_doubts_of_one_client_ask_for_a_probe_and_do_not_open() -> None:
    breaker = Breaker(3, 10.0)
    probes = [breaker.doubt(breaker.begin(), "a") for _ in range(6)]
    assert probes == [False, False, True, True, True, True]
    assert breaker.wait_s == 0


def test_doubts_of_several_clients_open() -> None:
    breaker = Breaker(3, 10.0)
    for client in "aaa":
        breaker.doubt(breaker.begin(), client)
    assert breaker.wait_s == 0
    assert not breaker.doubt(breaker.begin(), "b")
    assert breaker.wait_s > 0


def test_no_doubt_counts_where_another_was_answered_meanwhile() -> None:
    breaker = Breaker(2, 10.0)
    for client in "abcd":
        sent = breaker.begin()
        breaker.answered()
        assert not breaker.doubt(sent, client)
    assert breaker.wait_s == 0


def test_one_that_tries_and_is_slow_does_not_keep_others_out() -> None:
    now = 0.0
    breaker = Breaker(1, 10.0, lambda: now)
    breaker.failed()
    now = 10.0
    breaker.begin()
    assert breaker.wait_s == 10.0
    breaker.answered()
    assert breaker.wait_s == 0, "an answer that has begun closes it"
    breaker.failed()
    now = 20.0
    breaker.begin()
    now = 30.0
    assert breaker.wait_s == 0, "the next may try where the first takes long"


def _slow_where_asked(seconds: float = 20.0) -> Upstream:
    async def respond(request: UpstreamRequest, send: Send) -> None:
        if b"slow" in request.body:
            await asyncio.sleep(seconds)
        await send_response(send, chat_completion("ok"))

    return Upstream(respond)


def _post_many(proxy: Proxy, count: int, text: str) -> list[int]:
    async def run() -> list[int]:
        body = {"model": "m", "messages": [{"role": "user", "content": text}]}
        async with httpx.AsyncClient(timeout=20) as client:
            url = f"{proxy.url}/v1/chat/completions"
            responses = await asyncio.gather(*(client.post(url, json=body) for _ in range(count)))
            return [response.status_code for response in responses]

    return asyncio.run(run())


@pytest.mark.parametrize("config", ["", screen_config()])
def test_slow_answers_of_one_client_do_not_open_it_for_all(tmp_path: Path, config: str) -> None:
    config += "\n[proxy]\nfirst_byte_timeout_s = 0.4\n"
    with served(_slow_where_asked()) as port, proxied(tmp_path, config, port) as proxy:
        assert _post_many(proxy, 7, "slow") == [504] * 7
        time.sleep(0.2)  # a probe may be under way
        assert post(proxy).status_code == 200


def test_slow_bodies_do_not_open_it_for_all(tmp_path: Path) -> None:
    limits = "[proxy]\nfirst_byte_timeout_s = 0.3\nchunk_timeout_s = 0.6\n"
    upstream = _slow_where_asked()
    with served(upstream) as port, proxied(tmp_path, limits, port) as proxy:
        address = ("127.0.0.1", int(proxy.url.rpartition(":")[2]))
        head = (
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n"
            b"content-type: application/json\r\ncontent-length: 100\r\n\r\n{"
        )
        answers: list[bytes] = []

        def dribble() -> None:
            with closing(socket.create_connection(address, 10)) as slow:
                slow.sendall(head)
                answers.append(slow.recv(1000))

        threads = [threading.Thread(target=dribble) for _ in range(7)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(15)
        assert [answer.split()[1] for answer in answers] == [b"408"] * 7
        assert post(proxy).status_code == 200


def test_an_upstream_that_answers_nobody_is_left_alone(tmp_path: Path) -> None:
    """Its connections are taken and nothing comes: the probes fail too."""
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        port = silent.getsockname()[1]
        text = (
            f'[[upstreams]]\nname = "u"\nurl = "http://127.0.0.1:{port}"\nfailures = 1\n'
            "cooldown_s = 30\n[proxy]\nfirst_byte_timeout_s = 0.2\n"
        )
        with proxied(tmp_path, text) as proxy:
            assert post(proxy).status_code == 504
            until = time.monotonic() + 10
            while post(proxy).status_code != 503 and time.monotonic() < until:
                time.sleep(0.1)
            assert post(proxy).status_code == 503


def test_a_status_that_http_does_not_have_is_a_bad_gateway(tmp_path: Path) -> None:
    def serve(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(10_000)
            connection.sendall(b"HTTP/1.1 999 Odd\r\ncontent-length: 2\r\n\r\n{}")

    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        threading.Thread(target=serve, args=(listener,), daemon=True).start()
        with proxied(tmp_path, "", listener.getsockname()[1]) as proxy:
            response = post(proxy)
            assert response.status_code == 502
            assert response.json()["error"]["code"] == "upstream_failed"


@pytest.mark.parametrize("path", ["/v1/%", "/v1/%zz", "/v1/%ff%fe", "/v1/[", "//[", "/v1/%00"])
def test_odd_paths_do_not_count_against_the_upstream(tmp_path: Path, path: str) -> None:
    with served(_slow_where_asked()) as port:
        text = f'[[upstreams]]\nname = "u"\nurl = "http://127.0.0.1:{port}"\nfailures = 1\n'
        with proxied(tmp_path, text) as proxy:
            address = ("127.0.0.1", int(proxy.url.rpartition(":")[2]))
            with closing(socket.create_connection(address, 10)) as client:
                client.sendall(
                    f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode()
                )
                status = int(client.recv(1000).split()[1])
            assert status < 500
            assert post(proxy).status_code == 200


def shared_state(
    failures: int = 0, *, is_open: bool = False, open_for_s: float = 0.0
) -> BreakerState:
    return BreakerState(failures, is_open, open_for_s)


def test_what_others_know_holds_here() -> None:
    now = 0.0
    breaker = Breaker(3, 10.0, lambda: now)
    breaker.adopt(shared_state(2))
    breaker.failed()
    assert breaker.wait_s == 10.0, "two failures elsewhere and one here"
    assert breaker.report("u").opened
    breaker.adopt(shared_state())
    assert breaker.wait_s == 0
    breaker.adopt(shared_state(is_open=True, open_for_s=4.0))
    assert breaker.wait_s == 4.0
    now = 4.0
    breaker.begin()
    assert breaker.wait_s == 10.0, "one may try"


def test_what_happens_here_while_others_are_asked_is_not_forgotten() -> None:
    breaker = Breaker(2, 10.0, lambda: 0.0)
    breaker.report("u")
    breaker.failed()
    breaker.failed()
    breaker.adopt(shared_state())
    assert breaker.wait_s > 0
    report = breaker.report("u")
    assert (report.failures, report.opened) == (2, True)
    breaker.answered()
    breaker.adopt(shared_state(is_open=True, open_for_s=5.0))
    assert breaker.wait_s == 0


def test_a_report_that_did_not_arrive_is_a_part_of_the_next() -> None:
    breaker = Breaker(5, 10.0)
    breaker.failed()
    lost = breaker.report("u")
    breaker.failed()
    breaker.report_again(lost)
    assert breaker.report("u").failures == 2
    breaker.failed()
    lost = breaker.report("u")
    breaker.succeeded()
    breaker.report_again(lost)
    report = breaker.report("u")
    assert report.succeeded and report.failures == 0
