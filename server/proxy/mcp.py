"""Requests to servers of the Model Context Protocol (MCP over Streamable HTTP).

Agents send to tools what they send to models, and models read what tools return. Arguments are
texts at the place "arguments"; what a server says is an answer, which screens of "response" read,
and those of "tool".
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.types import Message, Receive, Scope, Send

from guard.errors import ContentBlocked, GuardError
from guard.plans.screens import ImageScreen, TextPlan, TextScreen
from guard.tenants.keys import Principal
from server.auth import choose_policy
from server.errors import ClientGone, InvalidJSON, error_fields, verdict_of
from server.observe.exchange import UPSTREAM, Exchange
from server.proxy.mcp_headers import Path, has_repeating, repeated_texts, send_repeating
from server.proxy.request import ProxiedRequest, ProxyContext
from server.screening.context import ScreeningContext
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
    media_type,
    receive_bytes,
    require_utf8,
)
from server.wire.replies import JSONReply
from server.wire.strict_json import parse_object

_ROUTE = Route(
    "mcp",
    default_place="arguments",
    verdict_holder=verdict_holder,
    separate_messages=True,
    reports_errors=False,
)


S = TypeVar("S", TextScreen, ImageScreen)


def plan_for_tools(plan: TextPlan) -> TextPlan:
    """The plan as it applies to tools: what a tool returns is a text at "tool", and a request that
    another upstream or policy should get is blocked, since there is none."""

    def for_tools(screen: S) -> S:
        return replace(
            screen,
            action="block" if screen.action in {"route", "policy"} else screen.action,
            places=screen.places | ({"response"} if "tool" in screen.places else set()),
        )

    return replace(
        plan,
        screens=tuple(map(for_tools, plan.screens)),
        images=tuple(map(for_tools, plan.images)),
    )


class McpRequest(ProxiedRequest):
    """One request to the server of MCP that is the upstream `name`."""

    def __init__(
        self,
        context: ProxyContext,
        request: Request,
        exchange: Exchange,
        key: Principal | None,
        name: str,
    ) -> None:
        super().__init__(context, request, _ROUTE, exchange, key)
        self._name = name
        self._requests: dict[RequestId, str] = {}
        self._is_batch = False
        self._repeated: dict[bytes, Path] = {}

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
        if has_repeating(headers):
            # as many values as a large body has
            self._repeated = await asyncio.to_thread(repeated_texts, headers, body.value)
        return body

    def _plan(self, body: RequestBody | None) -> TextPlan:
        name = choose_policy(self.context.config, self.key, "", self.request.headers, None)
        self.exchange.apply(self.context.config, name)
        return plan_for_tools(self.context.plans[name])

    def _route(self) -> Route:
        return replace(_ROUTE, stream_format=partial(McpFormat, self._requests))

    def _screening(self, body: RequestBody) -> ScreeningContext:
        context = self.context.screening
        if not self._repeated:
            return context
        return replace(context, app=partial(send_repeating, context.app, self._repeated))

    @property
    def _hides_verdicts(self) -> bool:
        return False  # servers of tools have none

    def _adapt(self, body: RequestBody, plan: TextPlan) -> bool:
        return False

    def _refusal(self, error: GuardError) -> JSONReply:
        verdict = verdict_of(error)
        if verdict is not None:
            self.exchange.outcome = verdict.outcome
        is_blocked = isinstance(error, ContentBlocked)
        message = error_fields(error, self.exchange).message
        replies: list[dict[str, Any]] = []
        requests: list[tuple[RequestId | None, str]] = [*self._requests.items()]
        for name, method in requests or [(None, "")]:
            if is_blocked:
                guard = self.exchange.guard(verdict).get("guard") if verdict else None
                replies.append(blocked_reply(name, method, guard, message))
            else:
                code = -32600 if error.status < 500 else -32603
                told = {"code": code, "message": message, "data": {"code": error.code}}
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
