"""Tokens that upstreams say an answer has used, and an estimate where they do not."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.observe.exchange import SCOPE_KEY, Exchange

_HEAD_BYTES, _TAIL_BYTES = 16_384, 65_536
"""What is kept of the beginning and of the end of an answer, where the usage stands."""
_USAGE = re.compile(rb'"usage"\s*:\s*(?=\{)')
"""In a text the quotation marks would be escaped."""
_PROMPT = ("prompt_tokens", "input_tokens")
_CACHED = ("cache_creation_input_tokens", "cache_read_input_tokens")
"""Anthropic counts these beside `input_tokens`."""
_COMPLETION = ("completion_tokens", "output_tokens")
_CHARS_PER_TOKEN = 4
_DECODER = json.JSONDecoder()


def metered(app: ASGIApp) -> ASGIApp:
    """`app`, whose answers' tokens count against the limits of the request's key."""

    async def count(scope: Scope, receive: Receive, send: Send) -> None:
        exchange: Exchange = scope[SCOPE_KEY]
        if exchange.lease is None or not exchange.lease.counts_tokens:
            await app(scope, receive, send)
            return
        scope = {**scope, "headers": [*scope["headers"]]}
        MutableHeaders(scope=scope)["accept-encoding"] = "identity"
        usage = AnswerUsage()

        async def receive_counted() -> Message:
            message = await receive()
            usage.read_request(message)
            return message

        async def send_counted(message: Message) -> None:
            usage.read(message)
            await send(message)

        try:
            await app(scope, receive_counted, send_counted)
        finally:
            exchange.spend(usage.tokens())

    return count


class AnswerUsage:
    """The tokens of one answer, in any API's words."""

    def __init__(self) -> None:
        self._request_bytes = 0
        self._head, self._tail = b"", bytearray()
        self._is_stream = self._is_whole = False
        self._events = 0

    def read_request(self, message: Message) -> None:
        """Read a message of the request, for the estimate."""
        self._request_bytes += len(message.get("body", b""))

    def read(self, message: Message) -> None:
        """Read a message of the answer."""
        if message["type"] == "http.response.start":
            kind = Headers(raw=message["headers"]).get("content-type", "")
            self._is_stream = kind.startswith("text/event-stream")
            return
        body: bytes = message.get("body", b"")
        self._is_whole = not message.get("more_body", False)
        if (room := _HEAD_BYTES - len(self._head)) > 0:
            self._head += body[:room]
            body = body[room:]
        if self._is_stream:
            self._events += message.get("body", b"").count(b"data:")
        self._tail += body
        if len(self._tail) > 2 * _TAIL_BYTES:
            del self._tail[:-_TAIL_BYTES]

    def tokens(self) -> int:
        """All tokens: those that the answer says. Where a stream has not said them, or has broken
        off, about one for each of its events, and one for four bytes of the request."""
        found = [*_usages(self._head + self._tail)]
        # in a stream the later ones replace the earlier, but need not repeat them
        prompt = max(
            (_largest(usage, _PROMPT) + _sum(usage, _CACHED) for usage in found), default=0
        )
        completion = max((_largest(usage, _COMPLETION) for usage in found), default=0)
        if self._events and not (self._is_whole and prompt + completion):
            # a stream's first event may have the tokens of the prompt alone
            completion = max(completion, self._events)
            prompt = prompt or self._request_bytes // _CHARS_PER_TOKEN
        return prompt + completion


def _usages(part: bytes) -> Iterator[dict[str, Any]]:
    for match in _USAGE.finditer(part):
        with suppress(ValueError, RecursionError):
            text = part[match.end() : match.end() + 4096].decode("utf-8", "replace")
            usage, _ = _DECODER.raw_decode(text)
            yield usage


def _count(usage: dict[str, Any], name: str) -> int:
    value = usage.get(name)
    return min(value, 10**9) if isinstance(value, int) and value > 0 else 0


def _largest(usage: dict[str, Any], names: tuple[str, ...]) -> int:
    return max(_count(usage, name) for name in names)


def _sum(usage: dict[str, Any], names: tuple[str, ...]) -> int:
    return sum(_count(usage, name) for name in names)
