"""Screens of text in front of our own server: plain ASGI around its app."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from fastapi import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from guard.config.keys import KeyRing
from guard.config.schema import Config
from guard.errors import GuardError
from guard.plans.screens import TextPlans
from guard.verdict import Verdict, gravest
from server.auth import authenticate, choose_policy
from server.errors import error_response, verdict_of
from server.observe.exchange import NamedRoute, exchange_of
from server.observe.recorder import Merge, Recorder
from server.screening.exchange import ScreenedExchange
from server.screening.forms import is_form, read_form
from server.screening.routes import Route, route_of
from server.screening.texts.screener import Screener
from server.wire.body import media_type, read_in_time, replayed
from server.wire.strict_json import parse_apart, require_once, require_utf8


@dataclass(frozen=True, slots=True)
class Screens:
    """What a server needs to screen text: the plans, what reads, and who is told."""

    plans: TextPlans
    screener: Screener
    recorder: Recorder


class ScreenMiddleware:
    """Reads requests and answers of the app's own routes where their policy screens text.

    Who may ask for what is decided twice, here and by the app inside, by the same functions.
    """

    def __init__(
        self,
        app: ASGIApp,
        config: Config,
        screens: Screens,
        keys: KeyRing | None,
    ) -> None:
        self.app, self.config, self.keys = app, config, keys
        self.plans, self.screener = screens.plans, screens.screener
        self.recorder = screens.recorder

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        route, template = (
            route_of(scope["method"], scope["path"]) if scope["type"] == "http" else (None, "")
        )
        if route is None or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        try:
            await self._serve(scope, receive, send, route, template)
        except GuardError as error:
            if verdict := verdict_of(error):
                exchange_of(Request(scope)).outcome = verdict.outcome
            scope.setdefault("route", NamedRoute(template))
            await error_response(error)(scope, receive, send)

    async def _serve(
        self, scope: Scope, receive: Receive, send: Send, route: Route, template: str
    ) -> None:
        request = Request(scope, receive)
        form = is_form(request.headers)
        if not form and media_type(request.headers) != "application/json":
            await self.app(scope, receive, send)  # which refuses it
            return
        key = authenticate(self.keys, request.headers)
        limits = self.config.server
        raw = await read_in_time(request, limits.max_body_bytes, limits.request_timeout_s)
        twice: str | None = None
        if form:
            body = await read_form(request.headers, raw)
        else:
            require_utf8(request.headers)
            body, twice = await parse_apart(raw)
        model = body.get("model")
        model = model if isinstance(model, str) else ""
        plan = self.plans[choose_policy(self.config, key, model, request.headers, _asked(body))]
        if not plan.active:
            await self.app(scope, replayed(raw, receive), send)
            return
        require_once(twice)
        exchange = exchange_of(request)
        if self.keys is not None and key is not None:
            self.keys.take(key)
            exchange.counted = True
        exchange.policy = plan.policy
        scope["route"] = NamedRoute(template)
        turn = ScreenedExchange(
            self.app,
            self.screener,
            plan,
            route,
            exchange,
            body,
            raw,
            altered=False,
            rewritable=not form,
            model=model,
            max_response_bytes=self.config.proxy.max_response_bytes,
            timeout_s=limits.request_timeout_s,
            own_errors=True,
        )
        tenant = key.tenant if key else ""
        exchange.record_id = self.recorder.defer()
        try:
            await turn.run(scope, receive, send)
        except GuardError:
            if turn.refused:
                # its rows never were, or are not wanted any more
                self.recorder.discard(exchange.record_id)
                self.recorder.record(turn.verdict(), tenant)
            raise
        finally:
            self.recorder.release(exchange.record_id, _joining(turn))


def _joining(turn: ScreenedExchange) -> Merge:
    """Adds what the screens have seen to the verdict of a row."""
    screens = turn.findings

    def join(row: Verdict) -> Verdict:
        return replace(
            row,
            outcome=gravest([row.outcome, screens.outcome]),
            guards=(*row.guards, *screens.guards()),
            unscreened=tuple(sorted(screens.unscreened)),
        )

    return join


def _asked(body: dict[str, Any]) -> str | None:
    """The policy that a body names; what has the wrong form the app inside refuses."""
    guard = body.get("guard")
    policy = guard.get("policy") if isinstance(guard, dict) else None
    return policy if isinstance(policy, str) else None
