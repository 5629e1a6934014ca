"""Requests to servers of the Model Context Protocol (MCP over Streamable HTTP).

Agents send to tools what they send to models, and models read what tools return. Arguments are
texts at the place "arguments"; what a server says is an answer, which screens of "response" read,
and those of "tool".
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from guard.config.schema import KeyConfig
from guard.errors import ContentBlocked, GuardError
from guard.plans.screens import TextPlan
from server.auth import choose_policy
from server.errors import ClientGone, InvalidJSON, verdict_of
from server.observe.exchange import UPSTREAM, Exchange
from server.proxy.request import ProxiedRequest, ProxyContext
from server.screening.context import ScreeningContext
from server.screening.errors import UnscreenedContent
from server.screening.routes import Route
from server.screening.streams.formats.mcp import (
    BATCH,
    McpFormat,
    RequestId,
    blocked_reply,
    requests_in,
    verdict_holder,
)
from server.wire.body import (
    RequestBody,
    body_of,
    media_type,
    receive_bytes,
    require_utf8,
)
from server.wire.replies import JSONReply
from server.wire.strict_json import parse_object

_ROUTE = Route(
    "mcp", default_place="arguments", verdict_holder=verdict_holder, separate_messages=True
)
_MIRRORS = ("mcp-name", "mcp-param-")
"""Headers in which clients repeat a text of the body, or the beginnings of their names."""
_CODED = re.compile(r"=\?base64\?(.*)\?=")
_PLAIN = re.compile(r"[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?")


def plan_for_tools(plan: TextPlan) -> TextPlan:
    """The plan as it applies to tools: what a tool returns is a text at "tool", and a request that
    another upstream or policy should get is blocked, since there is none."""
    screens = [
        replace(
            screen,
            action="block" if screen.action in {"route", "policy"} else screen.action,
            places=screen.places | ({"response"} if "tool" in screen.places else set()),
        )
        for screen in plan.screens
    ]
    return replace(plan, screens=tuple(screens))


class McpRequest(ProxiedRequest):
    """One request to the server of MCP that is the upstream `name`."""

    def __init__(
        self,
        context: ProxyContext,
        request: Request,
        exchange: Exchange,
        key: KeyConfig | None,
        name: str,
    ) -> None:
        super().__init__(context, request, _ROUTE, exchange, key)
        self._name = name
        self._requests: dict[RequestId, str] = {}
        self._is_batch = False

    async def run(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request, its refusal as JSON-RPC; and record its verdict."""
        scope[UPSTREAM] = self._name
        is_started = False

        async def tracked(message: Message) -> None:
            nonlocal is_started
            is_started = True
            await send(message)

        try:
            await super().run(scope, receive, tracked)
        except GuardError as error:
            if is_started or isinstance(error, ClientGone) or scope["method"] != "POST":
                raise
            await self._refusal(error)(scope, receive, send)

    async def _receive_body(self) -> RequestBody | None:
        context, headers = self.context, self.request.headers
        is_read = context.plans.active and self.request.method == "POST"
        if not is_read or media_type(headers) != "application/json":
            return None
        require_utf8(headers)
        limits = context.config
        raw = await receive_bytes(
            self.request, limits.proxy.max_body_bytes, limits.server.request_timeout_s
        )
        body = parse_messages(raw)
        self._is_batch = body.members is not None
        self._requests = requests_in(body.value)
        return body

    def _plan(self, body: RequestBody | None) -> TextPlan:
        name = choose_policy(self.context.config, self.key, "", self.request.headers, None)
        self.exchange.policy = name
        return plan_for_tools(self.context.plans[name])

    def _route(self) -> Route:
        return replace(_ROUTE, stream_format=partial(McpFormat, self._requests))

    def _screening(self, body: RequestBody) -> ScreeningContext:
        mirrored = mirrored_texts(self.request.scope["headers"], body.value)
        context = self.context.screening
        return replace(context, app=partial(_send_mirrored, context.app, mirrored))

    def _adapt(self, body: RequestBody, plan: TextPlan) -> bool:
        return False

    def _refusal(self, error: GuardError) -> JSONReply:
        verdict = verdict_of(error)
        if verdict is not None:
            self.exchange.outcome = verdict.outcome
        is_blocked = isinstance(error, ContentBlocked)
        replies: list[dict[str, Any]] = []
        requests: list[tuple[RequestId | None, str]] = [*self._requests.items()]
        for name, method in requests or [(None, "")]:
            if is_blocked:
                shown = verdict.as_dict() if verdict is not None else None
                replies.append(blocked_reply(name, method, shown, error.message))
            else:
                code = -32600 if error.status < 500 else -32603
                told = {"code": code, "message": error.message, "data": {"code": error.code}}
                replies.append({"jsonrpc": "2.0", "id": name, "error": told})
        # who has an answer to read reads it under 200 alone
        status = 200 if is_blocked and self._requests else error.status
        return JSONReply(replies if self._is_batch else replies[0], status_code=status)


def parse_messages(raw: bytes) -> RequestBody:
    """The body of a request: one JSON-RPC message, or a list of them. Raises InvalidJSON."""
    if not raw.lstrip(b" \t\r\n").startswith(b"["):
        return RequestBody(raw, parse_object(raw))
    value = parse_object(b'{"' + BATCH.encode() + b'":' + raw + b"}")
    if value.keys() != {BATCH}:
        raise InvalidJSON("The body is not valid JSON: something follows the list.")
    return RequestBody(raw, value, members=BATCH)


def mirrored_texts(
    headers: list[tuple[bytes, bytes]], body: Mapping[str, Any]
) -> dict[bytes, tuple[str | int, ...]]:
    """Where the texts stand in `body` that clients repeat in headers, by the names of the headers.

    Raises UnscreenedContent for a header that does not repeat any.
    """
    mirrored = {}
    for name, value in headers:
        if not name.startswith(_MIRRORS[1].encode()) and name != _MIRRORS[0].encode():
            continue
        decoded = _decoded(value)
        path = next((path for path, leaf in _leaves(body, ()) if _shown(leaf) == decoded), None)
        if path is None:
            raise UnscreenedContent(
                f"The header {name.decode('latin-1')[:80]} repeats nothing of the body: leave it "
                "out, or have it repeat what the body has."
            )
        mirrored[name] = path
    return mirrored


async def _send_mirrored(
    app: ASGIApp,
    mirrored: Mapping[bytes, tuple[str | int, ...]],
    scope: Scope,
    receive: Receive,
    send: Send,
) -> None:
    """Call `app` with headers that repeat what the body has now."""
    body = body_of(Request(scope))
    if mirrored and body is not None:
        headers = [pair for pair in scope["headers"] if pair[0] not in mirrored]
        for name, path in mirrored.items():
            leaf: Any = body.value
            for step in path:
                leaf = leaf[step]
            headers.append((name, _encoded(_shown(leaf))))
        scope = {**scope, "headers": headers}
    await app(scope, receive, send)


def _leaves(value: Any, path: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _leaves(item, (*path, key))
    elif value is not None:
        yield path, value


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _decoded(value: bytes) -> str | None:
    text = value.decode("latin-1")
    coded = _CODED.fullmatch(text)
    if coded is None:
        return text
    try:
        return base64.b64decode(coded[1], validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return None


def _encoded(text: str) -> bytes:
    if _PLAIN.fullmatch(text) and not _CODED.fullmatch(text):
        return text.encode()
    return b"=?base64?" + base64.b64encode(text.encode()) + b"?="
