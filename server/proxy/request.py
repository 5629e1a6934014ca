"""One request on its way through the proxy."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from guard.config.schema import Config
from guard.errors import ContentBlocked
from guard.plans.screens import TextPlan, TextPlans
from guard.tenants.keys import Principal
from guard.verdict import Outcome, Verdict, gravest
from server.auth import choose_policy
from server.edge.keep_alive import kept_alive
from server.edge.paths import KnownPaths
from server.errors import ClientGone, InvalidParameter, MethodNotAllowed, UnknownRoute
from server.observe.exchange import CLIENT, DELEGATED, MODEL, Exchange
from server.proxy.forwarding.forward import SAFE_METHODS, Forwarder
from server.proxy.token_usage import metered
from server.screening.context import ScreeningContext
from server.screening.errors import UnscreenedContent, UnscreenedRoute
from server.screening.exchange import ScreenedExchange
from server.screening.kept import KeptTexts
from server.screening.request import VLLM_XARGS, set_upstream_policy
from server.screening.routes import TEMPLATES, Route
from server.screening.texts.moderation import moderate, screens_for
from server.screening.texts.screener import Screener
from server.screening.texts.turns import caller_of
from server.wire.body import RequestBody, hand_over, media_type, receive_json
from server.wire.forms import is_form, receive_form
from server.wire.replies import JSONReply
from server.wire.schemas.images import EditRequest

if TYPE_CHECKING:
    from server.tenants.app import AdministrationApp

Record = Callable[[Verdict, str], None]
"""Takes the verdict of a request, and its tenant."""
MODERATIONS = "/v1/moderations"
POLICIES = "/guard/v1/policies"
PROBES = ("/health", "/ready", "/metrics", POLICIES)
"""Paths of GET that the proxy answers itself."""


@dataclass(frozen=True)
class ProxyContext:
    """What all requests through a proxy share."""

    config: Config
    plans: TextPlans
    screener: Screener
    forwarder: Forwarder
    record: Record
    administration: AdministrationApp | None = None
    """Answers the paths about tenants and policies, where there is a database of them."""
    kept: KeptTexts | None = None

    @cached_property
    def paths(self) -> KnownPaths:
        """The paths that the proxy answers, and those whose requests it can read."""
        own = [(path, ("GET",)) for path in PROBES] + [(MODERATIONS, ("POST",))]
        servers = [(path, ("POST", "GET", "DELETE")) for path in self.forwarder.upstreams.mcp]
        tenants = self.administration.templates if self.administration is not None else ()
        return KnownPaths([*TEMPLATES, *own, *servers, *tenants])

    @cached_property
    def upstream(self) -> ASGIApp:
        """Sends requests on, and counts the tokens of their answers."""
        return metered(self.forwarder)

    @cached_property
    def screening(self) -> ScreeningContext:
        """The context of screened requests."""
        # what screens hold back is silence too: the comments in it come from behind the screens,
        # a little before those of the edge would
        return ScreeningContext(
            kept_alive(self.upstream, 0.8 * self.config.server.keep_alive_s),
            self.screener,
            self.config.proxy.max_response_bytes,
            self.config.server.request_timeout_s,
            own_app=False,
            kept=self.kept,
        )


class ProxiedRequest:
    """One request on its way through the proxy."""

    def __init__(
        self,
        context: ProxyContext,
        request: Request,
        route: Route | None,
        exchange: Exchange,
        key: Principal | None,
    ) -> None:
        self.context, self.request, self.route = context, request, route
        self.exchange, self.key = exchange, key
        self.caller = caller_of(key, request.scope)
        self._model = ""
        self._screened: ScreenedExchange | None = None
        self._unscreened: tuple[str, ...] = ()
        self._started = asyncio.get_running_loop().time()
        self._is_recorded = False

    def record(self, outcome: Outcome = "pass") -> None:
        """Record the verdict, once. Before the end of the answer is sent: whoever has all of it has
        a line in the audit log, even where the proxy is killed at that moment."""
        is_read = (
            self._screened is not None
            or self._unscreened
            or self.request.method not in SAFE_METHODS
        )
        if self._is_recorded or self.exchange.policy is None or not is_read:
            return
        self._is_recorded = True
        ms = 1000 * (asyncio.get_running_loop().time() - self._started)
        self.context.record(self._verdict(outcome, ms), self.key.tenant if self.key else "")

    async def run(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request, and record its verdict."""
        context = self.context
        scope[CLIENT] = self.caller.client
        outcome: Outcome = "pass"
        try:
            body = await self._receive_body()
            plan = self._plan(body)
            self._require_known(plan, body)
            if self._is_answered_here(body) and body is not None:
                screens = screens_for(context.config, context.plans, self.key)
                found = await moderate(body.value, screens, context.screener, self.caller)
                reply = JSONReply(found)
                await reply(scope, receive, send)
            elif self._is_read(plan, body):
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
            self.record(outcome)

    async def _receive_body(self) -> RequestBody | None:
        """The body where the proxy has to know it; None where it passes through as it comes."""
        context, headers = self.context, self.request.headers
        delegates = context.forwarder.upstreams.delegates
        is_needed = context.plans.active or delegates or self.request.url.path == MODERATIONS
        is_needed = is_needed or self._hides_verdicts
        if not is_needed or self.request.method in SAFE_METHODS:
            return None
        limit = context.config.proxy.max_body_bytes
        timeout_s = context.config.server.request_timeout_s
        takes_forms = self.route is not None and self.route.accepts_forms
        if is_form(headers) and takes_forms and context.plans.active:
            return await receive_form(self.request, EditRequest, limit, timeout_s)
        media = media_type(headers)
        if media != "application/json" and not media.endswith("+json"):
            if _is_empty(headers):
                return RequestBody(b"", {})
            if delegates and self.route is not None and self.request.method == "POST":
                raise UnscreenedContent(
                    'Send the body with "Content-Type: application/json": the upstream\'s policy '
                    "goes into it."
                )
            return None
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
        self.exchange.apply(config, name)
        return self.context.plans[name]

    @property
    def _hides_verdicts(self) -> bool:
        """Whether verdicts of an upstream that is guarded too are not for this client."""
        return self.exchange.detail != "full" and self.route is not None

    def _is_read(self, plan: TextPlan, body: RequestBody | None) -> bool:
        """Whether request and answer are read. Raises as `_passes_unread`."""
        if plan.active:
            return not self._passes_unread(plan, body)
        return self._hides_verdicts and body is not None

    def _require_known(self, plan: TextPlan, body: RequestBody | None) -> None:
        """Raise UnknownRoute for a path that lacks `/v1`, UnscreenedRoute and UnscreenedContent for
        a request on which the upstream's plugin would not apply the policy of this one."""
        path, method = self.request.scope["path"], self.request.method
        if plan.passes(path):
            return
        if self.route is None and (meant := self.context.paths.meant_by(method, path)):
            raise UnknownRoute(
                f"Unknown URL ({method} {path[:200]}): it is {meant[:200]} here. Clients' base URL "
                "ends in /v1."
            )
        if self.route is None and method == "HEAD" and self.context.paths.methods(path):
            raise MethodNotAllowed(f"This URL does not take that method ({method} {path[:200]}).")
        is_read = method in SAFE_METHODS or method == "DELETE" or self._is_answered_here(body)
        if is_read or not self._may_reach_plugin(plan):
            return
        is_told = self.route is not None and (
            self.route.takes_xargs
            or not self.route.runs_model
            or plan.settings.upstream_policy is None
        )
        if not is_told:
            raise UnscreenedRoute(
                f"The upstream's plugin cannot be told the policy of {method} {path[:200]}: ask "
                "another path, or have the operator list this one as unscreened."
            )
        if body is not None and body.is_form and VLLM_XARGS in body.value:
            raise UnscreenedContent(f"A form may not have {VLLM_XARGS!r} here.", param=VLLM_XARGS)

    def _is_answered_here(self, body: RequestBody | None) -> bool:
        is_moderation = self.request.scope["path"] == MODERATIONS
        plans = self.context.plans
        has_screens = bool(plans.screens or plans.image_screens)
        return is_moderation and body is not None and has_screens

    def _may_reach_plugin(self, plan: TextPlan) -> bool:
        upstreams = self.context.forwarder.upstreams
        model = self.request.scope.get(MODEL)
        return upstreams.delegates and upstreams.delegates_for(model, plan.settings.upstream)

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
        altered = self._adapt(body, plan)
        self._screened = ScreenedExchange(
            self._screening(body),
            plan,
            self._route(),
            self.exchange,
            body,
            model=self._model,
            altered=altered,
            caller=self.caller,
        )
        return self._screened

    def _route(self) -> Route:
        """The reader of the request."""
        assert self.route is not None
        return self.route

    def _screening(self, body: RequestBody) -> ScreeningContext:
        """The context in which the request is screened."""
        return self.context.screening

    async def _forward(
        self, scope: Scope, receive: Receive, send: Send, plan: TextPlan, body: RequestBody | None
    ) -> None:
        if body is not None:
            if self._adapt(body, plan):
                body = body.rewritten()
            scope = dict(scope)
            receive = hand_over(body, scope, receive)
        await self.context.upstream(scope, receive, send)

    def _adapt(self, body: RequestBody, plan: TextPlan) -> bool:
        """Remove the `guard` object from a JSON body, and set the policy for the upstream's plugin;
        return whether the body changed. A form is sent on as it came."""
        if body.is_form:
            return False
        value = body.value
        before: dict[str, Any] = dict(value)
        value.pop("guard", None)
        # where a screen decides on it, it is set once that has fired
        is_conditional = any(screen.action == "policy" for screen in plan.screens)
        policy = None if is_conditional else plan.settings.upstream_policy
        if policy is not None and self.route is not None and self.route.runs_model:
            self.request.scope[DELEGATED] = True
        if self._may_reach_plugin(plan):
            takes_it = self.route is not None and self.route.takes_xargs
            set_upstream_policy(value, policy if takes_it else None)
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


def _is_empty(headers: Headers) -> bool:
    """Whether a request has no body, by its headers."""
    return headers.get("content-length", "0") == "0" and "transfer-encoding" not in headers
