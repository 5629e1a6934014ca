"""The policy of each HTTP request to vLLM's server, and the screens of text around its app."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import Request
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from guard.config.vllm_plugin import POLICY
from guard.errors import GuardError, GuardFailed, RequestError, UnknownPolicy
from guard.plans.screens import TextPlan
from server.auth import POLICY_HEADER
from server.errors import InvalidParameter, error_response, verdict_of
from server.observe.exchange import SCOPE_KEY, Exchange
from server.screening.context import ScreeningContext
from server.screening.exchange import ScreenedExchange, choices_of
from server.screening.middleware import recorded
from server.screening.request import VLLM_XARGS
from server.screening.routes import Route, route_of
from server.screening.texts.turns import caller_of
from server.vllm.http.call import HttpCall, current_call
from server.vllm.http.verdicts import VerdictMiddleware
from server.vllm.policies import Policies
from server.vllm.recording import Recording
from server.wire.body import (
    RequestBody,
    body_of,
    hand_over,
    media_type,
    receive_bytes,
    require_utf8,
)
from server.wire.long_work import run_by_size
from server.wire.strict_json import parse_object

_NO_LIMIT = 2**63
"""Of bodies that nobody reads here: vLLM has no limit either."""
_NAMES_POLICY = (b"guard", b"\\u")
"""One of them is in every body that names a policy: a name may be spelled in escapes."""


class HttpGuard:
    """Chooses the policy of every request that may reach the engine, and screens its text and its
    answer where the policy does.

    Stands inside of vLLM's own middleware, which authenticates. A request that cannot be screened
    is passed on as such: the engine's front end refuses it under a policy that screens.
    """

    def __init__(self, app: ASGIApp, recording: Recording) -> None:
        self._app, self._recording = VerdictMiddleware(app), recording

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        policies = policies_of(scope) if scope["type"] == "http" else None
        if policies is None:
            await self._app(scope, receive, send)
            return
        route, _ = route_of(scope["method"], _path(scope))
        # answers that vLLM has stored can be had again
        is_stored = route is not None and route.name == "responses"
        if scope["method"] != "POST" and not is_stored:
            await self._app(scope, receive, send)
            return
        exchange = scope[SCOPE_KEY] = Exchange.of(scope)
        exchange.identify(policies.config, None, None)
        send = _with_headers(send, exchange)
        try:
            await self._serve(policies, exchange, route, scope, receive, send)
        except GuardError as error:
            if verdict := verdict_of(error):
                exchange.outcome = verdict.outcome
            await error_response(error, exchange)(scope, receive, send)

    async def _serve(
        self,
        policies: Policies,
        exchange: Exchange,
        route: Route | None,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        request = Request(scope, receive)
        body = await _body(request, policies)
        value = body.value if body is not None else {}
        named = _named_policy(request.headers, value)
        policy = policies.default if named is None else named
        try:
            policies.entry(policy)
        except ValueError as error:
            raise UnknownPolicy(str(error), param="guard.policy") from None
        exchange.apply(policies.config, policy)
        call = HttpCall(exchange, policy, is_named=named is not None, rows=choices_of(value))
        if body is not None and value.pop("guard", None) is not None:
            body = body.rewritten()  # vLLM would log a field that it does not know
        plan = policies.screens.plans[policy] if policies.screens is not None else None
        token = current_call.set(call)
        try:
            if plan is None or not plan.active or not _is_read(route, body, scope):
                call.is_screened = plan is not None and plan.passes(_path(scope))
                if body is not None:
                    receive = hand_over(body, scope, receive)
                await self._app(scope, receive, send)
            elif route is not None:
                body = body or RequestBody(b"", {})
                await self._screen(policies, plan, route, call, body)(scope, receive, send)
        finally:
            current_call.reset(token)

    def _screen(
        self, policies: Policies, plan: TextPlan, route: Route, call: HttpCall, body: RequestBody
    ) -> ASGIApp:
        config, screens = policies.config, policies.screens
        assert screens is not None

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            call.policy = _delegated(policies, call.policy, scope)
            call.is_screened = True
            # so that vLLM's names of the request contain the one in the verdict
            MutableHeaders(scope=scope)["x-request-id"] = call.exchange.request_id
            await self._app(scope, receive, send)

        async def screened(scope: Scope, receive: Receive, send: Send) -> None:
            with screens.screener() as screener:
                context = ScreeningContext(
                    app,
                    screener,
                    config.proxy.max_response_bytes,
                    config.server.request_timeout_s,
                    own_app=False,  # vLLM's errors may quote what a model wrote
                )
                model = body.value.get("model")
                exchange = ScreenedExchange(
                    context,
                    plan,
                    route,
                    call.exchange,
                    body,
                    model=model if isinstance(model, str) else policies.revision.model,
                    caller=caller_of(None, scope),
                )
                recorder = self._recording.recorder
                await recorded(exchange, recorder, tenant="")(scope, receive, send)

        return screened


def policies_of(scope: Scope) -> Policies | None:
    """The policies of the engine behind the app of this request; None where it has no engine."""
    engine = getattr(scope["app"].state, "engine_client", None)
    processor = getattr(engine, "input_processor", None)
    policies: Policies | None = getattr(processor, "guard", None)
    return policies


async def _body(request: Request, policies: Policies) -> RequestBody | None:
    """The body of a request, None where it is no JSON. It is parsed only where somebody has to read
    it here."""
    headers = request.headers
    if request.method != "POST" or media_type(headers) != "application/json":
        return None
    limits = policies.config.server
    limit = limits.max_body_bytes if policies.screens is not None else _NO_LIMIT
    require_utf8(headers)
    raw = await receive_bytes(request, limit, limits.request_timeout_s)
    if policies.screens is None and not any(mark in raw for mark in _NAMES_POLICY):
        return RequestBody(raw, {})
    return RequestBody(raw, await run_by_size(len(raw), parse_object, raw))


def _named_policy(headers: Headers, body: Mapping[str, Any]) -> str | None:
    """The policy that a request names, in any of three places. Raises RequestError where they
    differ, and InvalidParameter for what is no name."""
    names: list[Any] = list(headers.getlist(POLICY_HEADER))
    if (guard := body.get("guard")) is not None:
        if not isinstance(guard, dict) or guard.keys() - {"policy"}:
            raise InvalidParameter("'guard' is an object, {\"policy\": NAME}.", param="guard")
        names += [guard["policy"]] if "policy" in guard else []
    if isinstance(xargs := body.get(VLLM_XARGS), dict) and POLICY in xargs:
        names.append(xargs[POLICY])
    if not all(isinstance(name, str) for name in names):
        raise InvalidParameter("The name of a policy is a text.", param="guard.policy")
    if len(set(names)) > 1:
        raise RequestError(
            f"The request names several policies; give one of {POLICY_HEADER}, 'guard.policy' and "
            f"'{VLLM_XARGS}.{POLICY}'.",
            param="guard.policy",
        )
    return names[0] if names else None


def _is_read(route: Route | None, body: RequestBody | None, scope: Scope) -> bool:
    """Whether the screens can read a request and its answer."""
    return route is not None and (body is not None or scope["method"] != "POST")


def _delegated(policies: Policies, policy: str, scope: Scope) -> str:
    """The policy whose guards act: the one that a screen has put into the body, or `policy`."""
    body = body_of(Request(scope))
    xargs = body.value.get(VLLM_XARGS) if body is not None else None
    name: str = xargs.get(POLICY, policy) if isinstance(xargs, dict) else policy
    if name != policy and (entry := policies.entries.get(name)) is not None and entry.plan.texts:
        raise GuardFailed(
            f"the policy {policy!r} has chosen {name!r}, which has screens of text itself: choose "
            "one of guards alone"
        )
    return name


def _path(scope: Scope) -> str:
    path: str = scope["path"]
    root = scope.get("root_path", "").rstrip("/")
    return path.removeprefix(root) if root and path.startswith(f"{root}/") else path


def _with_headers(send: Send, exchange: Exchange) -> Send:
    """A `send` that adds our headers; the request's id is a matter of vLLM's own middleware."""

    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = exchange.headers()
            del headers["X-Request-Id"]
            MutableHeaders(scope=message).update(headers)
        await send(message)

    return send_with_headers
