"""One request on its way through the proxy."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from guard.config.schema import Config, KeyConfig
from guard.errors import ContentBlocked
from guard.plans.screens import TextPlan, TextPlans
from guard.verdict import Outcome, Verdict, gravest
from server.auth import choose_policy
from server.errors import ClientGone, InvalidParameter
from server.observe.exchange import DELEGATED, MODEL, Exchange
from server.proxy.forward import SAFE_METHODS, Forwarder
from server.screening.context import ScreeningContext
from server.screening.errors import UnscreenedContent, UnscreenedRoute
from server.screening.exchange import ScreenedExchange
from server.screening.request import set_upstream_policy
from server.screening.routes import Route
from server.screening.texts.moderation import moderate
from server.screening.texts.screener import Screener
from server.wire.body import RequestBody, hand_over, media_type, receive_json
from server.wire.forms import is_form, receive_form
from server.wire.image_schemas import EditRequest
from server.wire.replies import JSONReply
from server.wire.strict_json import encode_json

Record = Callable[[Verdict, str], None]
"""Takes the verdict of a request, and its tenant."""
MODERATIONS = "/v1/moderations"


@dataclass(frozen=True)
class ProxyContext:
    """What all requests through a proxy share."""

    config: Config
    plans: TextPlans
    screener: Screener
    forwarder: Forwarder
    record: Record

    @cached_property
    def screening(self) -> ScreeningContext:
        """The context of screened requests."""
        return ScreeningContext(
            self.forwarder,
            self.screener,
            self.config.proxy.max_response_bytes,
            self.config.server.request_timeout_s,
            own_app=False,
        )


class ProxiedRequest:
    """One request on its way through the proxy."""

    def __init__(
        self,
        context: ProxyContext,
        request: Request,
        route: Route | None,
        exchange: Exchange,
        key: KeyConfig | None,
    ) -> None:
        self.context, self.request, self.route = context, request, route
        self.exchange, self.key = exchange, key
        self._model = ""
        self._screened: ScreenedExchange | None = None
        self._unscreened: tuple[str, ...] = ()

    async def run(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request, and record its verdict."""
        context = self.context
        started = asyncio.get_running_loop().time()
        outcome: Outcome = "pass"
        try:
            body = await self._receive_body()
            plan = self._plan(body)
            if scope["path"] == MODERATIONS and body is not None and context.plans.screens:
                screens = list(context.plans.screens)
                reply = JSONReply(await moderate(body.value, screens, context.screener))
                await reply(scope, receive, send)
            elif plan.active and not self._passes_unread(plan, body):
                screened = self._screen(plan, body or RequestBody(b"", {}))
                await screened.run(scope, receive, send)
            else:
                await self._forward(scope, receive, send, plan, body)
        except ContentBlocked as error:
            outcome = error.verdict.outcome
            raise
        except ClientGone:
            raise
        except BaseException:
            outcome = "error"
            raise
        finally:
            is_read = (
                self._screened is not None
                or self._unscreened
                or scope["method"] not in SAFE_METHODS
            )
            if self.exchange.policy is not None and is_read:
                ms = 1000 * (asyncio.get_running_loop().time() - started)
                context.record(self._verdict(outcome, ms), self.key.tenant if self.key else "")

    async def _receive_body(self) -> RequestBody | None:
        """The body where the proxy has to know it; None where it passes through as it comes."""
        context, headers = self.context, self.request.headers
        delegates = context.forwarder.upstreams.delegates
        is_needed = context.plans.active or delegates or self.request.url.path == MODERATIONS
        if not is_needed or self.request.method in SAFE_METHODS:
            return None
        limit = context.config.proxy.max_body_bytes
        timeout_s = context.config.server.request_timeout_s
        takes_forms = self.route is not None and self.route.accepts_forms
        if is_form(headers) and takes_forms and context.plans.active:
            return await receive_form(self.request, EditRequest, limit, timeout_s)
        media = media_type(headers)
        if media != "application/json" and not media.endswith("+json"):
            if delegates and self.route is not None and self.request.method == "POST":
                raise UnscreenedContent(
                    'Send the body with "Content-Type: application/json": the upstream\'s policy '
                    "goes into it."
                )
            return None
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise UnscreenedContent("Send the body as it is: an encoded one cannot be screened.")
        body = await receive_json(self.request, limit, timeout_s)
        model = body.value.get("model")
        self._model = model if isinstance(model, str) else ""
        self.request.scope[MODEL] = self._model or None
        return body

    def _plan(self, body: RequestBody | None) -> TextPlan:
        """The plan of the request's policy. Raises InvalidParameter, and as `choose_policy`."""
        guard = body.value.get("guard") if body is not None else None
        if guard is not None and not (
            isinstance(guard, dict) and isinstance(guard.get("policy"), str)
        ):
            raise InvalidParameter("'guard' is an object with a 'policy'.", param="guard")
        policy = guard["policy"] if guard is not None else None
        config = self.context.config
        name = choose_policy(config, self.key, self._model, self.request.headers, policy)
        self.exchange.policy = name
        return self.context.plans[name]

    def _passes_unread(self, plan: TextPlan, body: RequestBody | None) -> bool:
        """Whether the request goes through unread though its policy has screens.

        Raises UnscreenedRoute and UnscreenedContent where it may not, and cannot be screened.
        """
        path, method = self.request.scope["path"], self.request.method
        if plan.passes(path):
            self._unscreened = (path,)
            return True
        if self.route is None:
            raise UnscreenedRoute(
                f"Nothing reads {method} {path[:200]} here, and the policy {plan.policy!r} screens "
                "text: ask for another policy, or have the operator list the path as unscreened."
            )
        if body is None and method not in SAFE_METHODS and method != "DELETE":
            raise UnscreenedContent(
                'Send the body with "Content-Type: application/json": no other can be screened.'
            )
        return False

    def _screen(self, plan: TextPlan, body: RequestBody) -> ScreenedExchange:
        assert self.route is not None
        self._screened = ScreenedExchange(
            self.context.screening,
            plan,
            self.route,
            self.exchange,
            body,
            model=self._model,
            altered=self._adapt(body, plan),
        )
        return self._screened

    async def _forward(
        self, scope: Scope, receive: Receive, send: Send, plan: TextPlan, body: RequestBody | None
    ) -> None:
        if body is not None:
            if self._adapt(body, plan):
                body = RequestBody(encode_json(body.value), body.value)
            scope = dict(scope)
            receive = hand_over(body, scope, receive)
        await self.context.forwarder(scope, receive, send)

    def _adapt(self, body: RequestBody, plan: TextPlan) -> bool:
        """Remove the `guard` object from a JSON body, and set the policy for the upstream's plugin;
        return whether the body changed. A form is sent on as it came."""
        if body.is_form:
            return False
        value = body.value
        before: dict[str, Any] = dict(value)
        value.pop("guard", None)
        if self.route is not None and self.route.takes_xargs:
            # where a screen decides on it, it is set once that has fired
            is_conditional = any(screen.action == "policy" for screen in plan.screens)
            policy = None if is_conditional else plan.settings.upstream_policy
            if policy is not None:
                self.request.scope[DELEGATED] = True
            if self.context.forwarder.upstreams.delegates:
                set_upstream_policy(value, policy)
        return value != before

    def _verdict(self, outcome: Outcome, elapsed_ms: float) -> Verdict:
        if self._screened is not None:
            verdict = self._screened.verdict()
            return replace(verdict, outcome=gravest([verdict.outcome, outcome]))
        return Verdict(
            request_id=self.exchange.request_id,
            model=self._model,
            policy=self.exchange.policy or "",
            outcome=outcome,
            guards=(),
            elapsed_ms=round(elapsed_ms, 3),
            unscreened=self._unscreened,
        )
