"""One request on its way through the proxy."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from guard.config.schema import Config, KeyConfig
from guard.errors import ContentBlocked
from guard.plans.screens import TextPlan, TextPlans
from guard.verdict import Outcome, Verdict, gravest
from server.auth import choose_policy
from server.errors import ClientGone, InvalidParameter
from server.observe.exchange import MODEL, Exchange
from server.proxy.forward import Forwarder
from server.screening.errors import UnscreenedContent, UnscreenedRoute
from server.screening.exchange import ScreenedExchange
from server.screening.forms import is_form, read_form
from server.screening.request import hand_down
from server.screening.routes import Route
from server.screening.texts.moderation import moderate
from server.screening.texts.screener import Screener
from server.wire.body import media_type, read_in_time, replayed
from server.wire.replies import JSONReply
from server.wire.strict_json import encode_json, parse_apart, require_once, require_utf8

Recorded = Callable[[Verdict, str], None]
"""Takes the verdict of a request, and its tenant."""
MODERATIONS = "/v1/moderations"
READS = {"GET", "HEAD", "OPTIONS"}


@dataclass(frozen=True, slots=True)
class ProxyContext:
    """What every visit needs."""

    config: Config
    plans: TextPlans
    screener: Screener
    forwarder: Forwarder
    record: Recorded


class ProxiedRequest:
    """One request on its way through the proxy."""

    def __init__(
        self,
        desk: ProxyContext,
        request: Request,
        route: Route | None,
        exchange: Exchange,
        key: KeyConfig | None,
    ) -> None:
        self.desk, self.request, self.route = desk, request, route
        self.exchange, self.key = exchange, key
        self.model = ""
        self.turn: ScreenedExchange | None = None
        self.unscreened: tuple[str, ...] = ()
        self._twice: str | None = None

    async def run(self, scope: Scope, receive: Receive, send: Send) -> None:
        desk = self.desk
        begun = asyncio.get_running_loop().time()
        outcome: Outcome = "pass"
        try:
            body, raw = await self._read()
            plan = self._plan(body)
            if scope["path"] == MODERATIONS and body is not None and desk.plans.screens:
                told = await moderate(body, list(desk.plans.screens), desk.screener)
                await JSONReply(told)(scope, receive, send)
            elif plan.active and not self._passes(plan, body):
                await self._screened(scope, receive, send, plan, body or {}, raw or b"")
            else:
                await self._forward(scope, receive, send, plan, body, raw)
        except ContentBlocked as error:
            outcome = error.verdict.outcome
            raise
        except ClientGone:
            raise
        except BaseException:
            outcome = "error"
            raise
        finally:
            read = self.turn is not None or self.unscreened or scope["method"] not in READS
            if self.exchange.policy is not None and read:
                ms = 1000 * (asyncio.get_running_loop().time() - begun)
                desk.record(self._verdict(outcome, ms), self.key.tenant if self.key else "")

    async def _read(self) -> tuple[dict[str, Any] | None, bytes | None]:
        """The body, where somebody here has to know it: None where it goes through as it comes."""
        desk, headers = self.desk, self.request.headers
        wanted = (
            desk.plans.active
            or desk.forwarder.upstreams.delegates
            or self.request.url.path == MODERATIONS
        )
        if not wanted or self.request.method in READS:
            return None, None
        if is_form(headers) and self.route is not None and self.route.form and desk.plans.active:
            raw = await self._bytes()
            return await read_form(headers, raw), raw
        media = media_type(headers)
        if media != "application/json" and not media.endswith("+json"):
            if (
                desk.forwarder.upstreams.delegates
                and self.route is not None
                and self.request.method == "POST"
            ):
                raise UnscreenedContent(
                    'Send the body with "Content-Type: application/json": the upstream\'s policy '
                    "goes into it."
                )
            return None, None
        require_utf8(headers)
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise UnscreenedContent("Send the body as it is: an encoded one cannot be screened.")
        raw = await self._bytes()
        body, self._twice = await parse_apart(raw)
        model = body.get("model")
        self.model = model if isinstance(model, str) else ""
        self.request.scope[MODEL] = self.model or None
        return body, raw

    async def _bytes(self) -> bytes:
        config = self.desk.config
        limit, seconds = config.proxy.max_body_bytes, config.server.request_timeout_s
        return await read_in_time(self.request, limit, seconds)

    def _plan(self, body: dict[str, Any] | None) -> TextPlan:
        """The plan of the request's policy. Raises as `choose_policy` does."""
        asked = body.get("guard") if body is not None else None
        if asked is not None and not (
            isinstance(asked, dict) and isinstance(asked.get("policy"), str)
        ):
            raise InvalidParameter("'guard' is an object with a 'policy'.", param="guard")
        name = choose_policy(
            *(self.desk.config, self.key, self.model, self.request.headers),
            asked["policy"] if asked is not None else None,
        )
        self.exchange.policy = name
        return self.desk.plans[name]

    def _passes(self, plan: TextPlan, body: dict[str, Any] | None) -> bool:
        """Whether the request goes through unread though its policy screens. Raises where it may
        not, and nobody can read it."""
        path, method = self.request.scope["path"], self.request.method
        if plan.passes(path):
            self.unscreened = (path,)
            return True
        if self.route is None:
            raise UnscreenedRoute(
                f"Nothing reads {method} {path[:200]} here, and the policy {plan.policy!r} screens "
                "text: ask for another policy, or have the operator list the path as unscreened."
            )
        if body is None and method not in READS and method != "DELETE":
            raise UnscreenedContent(
                'Send the body with "Content-Type: application/json": no other can be screened.'
            )
        return False

    async def _screened(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        plan: TextPlan,
        body: dict[str, Any],
        raw: bytes,
    ) -> None:
        assert self.route is not None
        require_once(self._twice)
        config, form = self.desk.config, is_form(self.request.headers)
        self.turn = ScreenedExchange(
            self.desk.forwarder,
            self.desk.screener,
            plan,
            self.route,
            self.exchange,
            body,
            raw,
            altered=self._ours(body, plan) and not form,
            rewritable=not form,
            model=self.model,
            max_response_bytes=config.proxy.max_response_bytes,
            timeout_s=config.server.request_timeout_s,
            own_errors=False,
        )
        await self.turn.run(scope, receive, send)

    async def _forward(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        plan: TextPlan,
        body: dict[str, Any] | None,
        raw: bytes | None,
    ) -> None:
        if body is None or raw is None:
            await self.desk.forwarder(scope, receive, send)
            return
        ours = not is_form(self.request.headers) and self._ours(body, plan)
        content = encode_json(body) if ours else raw
        once = replayed(content, receive)
        headers = [(k, v) for k, v in scope["headers"] if k != b"content-length"]
        headers.append((b"content-length", str(len(content)).encode()))
        await self.desk.forwarder(dict(scope) | {"headers": headers}, once, send)

    def _ours(self, body: dict[str, Any], plan: TextPlan) -> bool:
        """Take out of a body what is for us, and put in what is for the upstream's plugin; whether
        that changed it."""
        before = dict(body)
        body.pop("guard", None)
        if (
            self.desk.forwarder.upstreams.delegates
            and self.route is not None
            and self.route.takes_xargs
        ):
            handed = plan.settings.upstream_policy
            late = any(screen.action == "policy" for screen in plan.screens)
            hand_down(body, None if late else handed)
        return body != before

    def _verdict(self, outcome: Outcome, elapsed_ms: float) -> Verdict:
        if self.turn is not None:
            told = self.turn.verdict()
            return replace(told, outcome=gravest([told.outcome, outcome]))
        return Verdict(
            request_id=self.exchange.request_id,
            model=self.model,
            policy=self.exchange.policy or "",
            outcome=outcome,
            guards=(),
            elapsed_ms=round(elapsed_ms, 3),
            unscreened=self.unscreened,
        )
