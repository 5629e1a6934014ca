"""Two proxies that share limits and breakers in a real store."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest
from starlette.types import Send

from guard.tenants.secret import hash_key
from tests.guard.replicas.stores import running_redis
from tests.guard.tenants.databases import running_postgres
from tests.server.proxy.screened import BODY, post
from tests.server.proxy.stand import (
    Proxy,
    Upstream,
    UpstreamRequest,
    chat_completion,
    proxied,
    send_response,
    served,
)

KEY = "sk-test"
LIMITED = f'[[keys]]\nhash = "{hash_key(KEY)}"\ntenant = "shop"\nrequests_per_minute = 10\n'


@pytest.fixture(params=["redis", "postgresql"], scope="module")
def store_url(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "redis":
        with running_redis() as server:
            yield server.url
    else:
        with running_postgres() as url:
            yield url.render_as_string()


def shared(store_url: str) -> str:
    """A busy machine must not look like a store that is down."""
    return f'[replicas]\nstore = "{store_url}"\ntimeout_s = 3\noffline_s = 9\n'


class Switched:
    """An upstream that answers, or fails, as the test says."""

    def __init__(self) -> None:
        self.fails, self.asked = False, 0

    async def __call__(self, request: UpstreamRequest, send: Send) -> None:
        self.asked += 1
        status = 503 if self.fails else 200
        await send_response(send, chat_completion("ok"), status=status)


@contextmanager
def two_proxies(folder: Path, text: str, upstream: Switched) -> Iterator[list[Proxy]]:
    with ExitStack() as stack:
        port = stack.enter_context(served(Upstream(upstream)))
        text += f'\n[[upstreams]]\nname = "u"\nurl = "http://127.0.0.1:{port}"\n'
        text += "failures = 4\ncooldown_s = 1\n"
        proxies = []
        for name in ("a", "b"):
            (folder / name).mkdir()
            proxies.append(stack.enter_context(proxied(folder / name, text)))
        yield proxies


def eventually(holds: Callable[[], bool]) -> None:
    until = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.02)


def asked(proxy: Proxy) -> httpx.Response:
    url, headers = f"{proxy.url}/v1/chat/completions", {"Authorization": f"Bearer {KEY}"}
    return httpx.post(url, json=BODY, headers=headers, timeout=20)


def test_a_key_gets_its_limit_once(tmp_path: Path, store_url: str) -> None:
    text = f'{shared(store_url)}name = "limits"\n{LIMITED}'
    with two_proxies(tmp_path, text, Switched()) as proxies:
        started = time.monotonic()
        answers = [asked(proxy) for _ in range(10) for proxy in proxies]
        taken = [answer for answer in answers if answer.status_code == 200]
        assert 8 <= len(taken) <= 10 + (time.monotonic() - started) / 6
        assert {answer.status_code for answer in answers} == {200, 429}
        refused = next(answer for answer in answers if answer.status_code == 429)
        assert refused.headers["x-ratelimit-limit-requests"] == "10"
        assert refused.headers["x-ratelimit-remaining-requests"] == "0"
        assert int(refused.headers["retry-after"]) >= 1
        metrics = httpx.get(f"{proxies[0].url}/metrics").text
        assert "inference_guard_shared_limits_up 1.0" in metrics
        assert 'inference_guard_unshared_requests_total{result="refused"} 0.0' in metrics


def test_an_upstream_that_fails_for_both_is_left_alone_by_both(
    tmp_path: Path, store_url: str
) -> None:
    upstream = Switched()
    with two_proxies(
        tmp_path, f'[replicas]\nstore = "{store_url}"\ntimeout_s = 3\noffline_s = 9\n', upstream
    ) as proxies:
        assert [post(proxy).status_code for proxy in proxies] == [200, 200]
        breakers = [proxy.app.context.forwarder.upstreams.all[0].breaker for proxy in proxies]
        # an answer that is told late would end the row
        eventually(lambda: not any(breaker._news.succeeded for breaker in breakers))
        upstream.fails = True
        # three here do not open it, one more there does
        assert [post(proxies[0]).status_code for _ in range(3)] == [503] * 3
        eventually(lambda: breakers[1]._failed == 3)
        post(proxies[1])
        eventually(lambda: proxies[0].app._ready().status_code == 503)
        count = upstream.asked
        assert "No upstream is there now" in post(proxies[0]).text and upstream.asked == count
        upstream.fails = False
        eventually(lambda: post(proxies[0]).status_code == 200)
        eventually(lambda: proxies[1].app._ready().status_code == 200)
        assert post(proxies[1]).status_code == 200
