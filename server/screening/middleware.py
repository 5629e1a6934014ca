"""Screens of text in front of `guard serve`: plain ASGI around its app."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from fastapi import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from guard.config.schema import Config
from guard.errors import GuardError
from guard.plans.screens import TextPlans
from guard.tenants.keys import KeyRing
from guard.verdict import Verdict, gravest
from server.auth import admit, authenticate, choose_policy
from server.errors import error_response, verdict_of
from server.observe.exchange import NamedRoute, exchange_of
from server.observe.recorder import Merge, Recorder
from server.screening.context import ScreeningContext
from server.screening.exchange import ScreenedExchange
from server.screening.kept import KeptTexts
from server.screening.routes import Route, route_of
from server.screening.texts.screener import Screener
from server.screening.texts.turns import caller_of
from server.wire.body import hand_over, media_type, receive_json
from server.wire.forms import is_form, receive_form
from server.wire.schemas.images import EditRequest


@dataclass(slots=True)
class Screens:
    """What a server needs to screen text: plans, classifiers and patterns, and the recorder."""

    plans: TextPlans
    screener: Screener
    recorder: Recorder
    kept: KeptTexts | None = None

    def follow(self, config: Config) -> Callable[[], None]:
        """See `server.policies.live.Follower`."""
        plans = self.plans.under(config)

        def swap() -> None:
            self.plans = plans
            if self.kept is not None:
                self.kept.follow(config)

        return swap


class ScreenMiddleware:
    """Screens requests and responses of the app's routes where their policy screens text.

    The caller and the policy are checked twice, here and by the app, with the same functions. The
    body is read once, here, and handed over.
    """

    def __init__(
        self,
        app: ASGIApp,
        config: Config,
        screens: Screens,
        keys: KeyRing | None,
        current: Callable[[], Config],
    ) -> None:
        """`current` gives the configuration with what has changed since the start."""
        self.app, self.config, self.keys, self._current = app, config, keys, current
        self._screens, self.recorder = screens, screens.recorder
        self._context = ScreeningContext(
            app,
            screens.screener,
            config.proxy.max_response_bytes,
            config.server.request_timeout_s,
            own_app=True,
            kept=screens.kept,
        )

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
            exchange = exchange_of(Request(scope))
            if verdict := verdict_of(error):
                exchange.outcome = verdict.outcome
            scope.setdefault("route", NamedRoute(template))
            await error_response(error, exchange)(scope, receive, send)

    async def _serve(
        self, scope: Scope, receive: Receive, send: Send, route: Route, template: str
    ) -> None:
        request = Request(scope, receive)
        has_form = is_form(request.headers)
        if not has_form and media_type(request.headers) != "application/json":
            await self.app(scope, receive, send)  # which refuses it
            return
        key = authenticate(self.keys, request.headers)
        exchange = exchange_of(request)
        exchange.identify(self.config, self.keys, key)
        limits = self.config.server
        limit, timeout_s = limits.max_body_bytes, limits.request_timeout_s
        if has_form:
            body = await receive_form(request, EditRequest, limit, timeout_s)
        else:
            body = await receive_json(request, limit, timeout_s)
        model = body.value.get("model")
        model = model if isinstance(model, str) else ""
        asked = _asked_policy(body.value)
        current = exchange.under(self._current())
        # the plans change with the configuration, between two steps of the event loop
        plan = self._screens.plans[choose_policy(current, key, model, request.headers, asked)]
        if not plan.active:
            await self.app(scope, hand_over(body, scope, receive), send)
            return
        await admit(self.keys, key, exchange)
        exchange.apply(current, plan.policy)
        scope["route"] = NamedRoute(template)
        caller = caller_of(key, scope)
        screened = ScreenedExchange(
            self._context, plan, route, exchange, body, model=model, caller=caller
        )
        tenant = key.tenant if key else ""
        await recorded(screened, self.recorder, tenant)(scope, receive, send)


def recorded(screened: ScreenedExchange, recorder: Recorder, tenant: str) -> ASGIApp:
    """The app that answers a screened request, whose rows are recorded with what the screens have
    found; the exchange has the id of its record before the app inside is called."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        record_id = screened.exchange.record_id = recorder.defer()
        is_released = False

        def release() -> None:
            nonlocal is_released
            if not is_released:
                is_released = True
                recorder.release(record_id, _joining(screened))

        async def send_recorded(message: Message) -> None:
            # whoever has all of an answer has its line, even where the server is killed just then
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                release()
            await send(message)

        try:
            await screened.run(scope, receive, send_recorded)
        except GuardError:
            if screened.refused and not is_released:
                # its rows never were, or are no longer wanted
                recorder.discard(record_id)
                recorder.record(screened.verdict(), tenant)
            raise
        finally:
            release()

    return answer


def _joining(screened: ScreenedExchange) -> Merge:
    """Adds the findings of the screens to the verdict of a row."""
    findings = screened.findings

    def join(row: Verdict) -> Verdict:
        return replace(
            row,
            outcome=gravest([row.outcome, findings.outcome]),
            guards=(*row.guards, *findings.guards()),
            unscreened=tuple(sorted(findings.unscreened)),
        )

    return join


def _asked_policy(body: dict[str, Any]) -> str | None:
    """The policy that a body names; the app refuses one of the wrong type."""
    guard = body.get("guard")
    policy = guard.get("policy") if isinstance(guard, dict) else None
    return policy if isinstance(policy, str) else None
