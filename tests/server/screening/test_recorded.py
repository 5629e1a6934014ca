"""The line of a request is there before the end of its answer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from server.errors import ClientGone
from server.observe.exchange import Exchange
from server.proxy.errors import UpstreamBroken
from server.proxy.tracked_send import TrackedSend
from server.screening.middleware import recorded

pytestmark = pytest.mark.anyio
SCOPE: Scope = {"type": "http", "path": "/v1/messages", "headers": []}
HEAD: Message = {"type": "http.response.start", "status": 200, "headers": []}
STREAM: Message = {**HEAD, "headers": [(b"content-type", b"text/event-stream")]}


def body(content: bytes, *, more: bool = False) -> Message:
    return {"type": "http.response.body", "body": content, "more_body": more}


class Order:
    """What was sent and what was recorded, in their order."""

    def __init__(self, *, hangs_up: bool = False) -> None:
        self.seen: list[str] = []
        self._hangs_up = hangs_up

    async def send(self, message: Message) -> None:
        self.seen.append(message.get("body", b"head").decode())
        if self._hangs_up and message.get("more_body") is False:
            raise ClientGone("The client hung up.")

    def defer(self) -> str:
        return "id"

    def release(self, record_id: str, merge: Any) -> None:
        self.seen.append("recorded")

    def discard(self, record_id: str) -> None:
        self.seen.append("discarded")

    def record(self, verdict: Any, tenant: str) -> None:
        self.seen.append("refused")


def screened(*messages: Message, refused: bool = False) -> Any:
    async def run(scope: Scope, receive: Receive, send: Send) -> None:
        for message in messages:
            await send(message)
        if not messages:
            raise ClientGone("Nothing was sent.")

    return SimpleNamespace(
        run=run, exchange=SimpleNamespace(), findings=None, refused=refused, verdict=lambda: None
    )


async def nothing() -> Message:
    raise AssertionError("nothing is received")


async def answered(order: Any, exchange: Any) -> list[str]:
    try:
        await recorded(exchange, order, "t")(SCOPE, nothing, order.send)
    except ClientGone:
        order.seen.append("gone")
    return list(order.seen)


async def test_a_server_records_before_the_end() -> None:
    messages = [HEAD, body(b"one", more=True), body(b"two")]
    assert await answered(Order(), screened(*messages)) == ["head", "one", "recorded", "two"]


async def test_a_client_that_hangs_up_at_the_end_has_one_line() -> None:
    exchange = screened(HEAD, body(b"end"), refused=True)
    order = Order(hangs_up=True)
    assert await answered(order, exchange) == ["head", "recorded", "end", "gone"]


async def test_what_is_refused_has_a_line_of_its_own() -> None:
    seen = await answered(Order(), screened(refused=True))
    assert seen == ["discarded", "refused", "recorded", "gone"]


async def test_a_proxy_records_before_the_end() -> None:
    order = Order()
    send = TrackedSend(order.send, Exchange.of(SCOPE))
    send.before_end = lambda: order.release("id", None)
    for message in (HEAD, body(b"one", more=True), body(b"two")):
        await send(message)
    assert order.seen == ["head", "one", "recorded", "two"]


async def test_a_stream_without_its_end_is_not_recorded_as_whole() -> None:
    order = Order()
    send = TrackedSend(order.send, Exchange.of(SCOPE))
    send.before_end = lambda: order.release("id", None)
    await send(STREAM)
    with pytest.raises(UpstreamBroken):
        await send(body(b"event: ping\n\n"))
    assert "recorded" not in order.seen
