"""The proxy as an ASGI app: authentication, the proxy's endpoints, and requests to upstreams."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from guard.config.schema import Config
from guard.errors import GuardError
from guard.plans.screens import TextPlans
from guard.replicas.opening import Replicas
from guard.tenants.keys import KeyRing, Principal
from server.auth import admit, allowed_policies, authenticate, default_policy, reads_all
from server.errors import internal_error
from server.observe.exchange import NamedRoute, exchange_of
from server.observe.metrics import Metrics
from server.proxy.errors import UnsupportedUpgrade
from server.proxy.forwarding.forward import SAFE_METHODS
from server.proxy.forwarding.health import poll_health
from server.proxy.forwarding.shared_breakers import share_breakers
from server.proxy.mcp import McpRequest
from server.proxy.request import POLICIES, ProxiedRequest, ProxyContext
from server.proxy.tracked_send import TrackedSend
from server.screening.routes import route_of
from server.wire.replies import JSONReply

if TYPE_CHECKING:
    from server.policies.service import LivePolicies
    from server.tenants.app import AdministrationApp

logger = logging.getLogger(__name__)


class ProxyApp:
    """The forwarder and the screener of `context` are opened and closed with the app.

    `keys` None leaves the proxy open to all; with `replicas` it shares its breakers.
    """

    def __init__(
        self,
        context: ProxyContext,
        keys: KeyRing | None,
        metrics: Metrics,
        replicas: Replicas | None = None,
    ) -> None:
        self.context, self.keys, self.metrics = context, keys, metrics
        self.admins: KeyRing | None = None
        self.policies: LivePolicies | None = None
        """What changes the policies of the context while the proxy runs."""
        self._replicas = replicas
        self._tasks: list[asyncio.Task[None]] = []

    def administer(
        self,
        administration: AdministrationApp,
        policies: LivePolicies | None,
        admins: KeyRing | None,
    ) -> None:
        """Let `administration` answer its paths, and follow `policies`, from the start; who has a
        key of `admins` that reads is shown all policies."""
        self.context = replace(self.context, administration=administration)
        self.policies, self.admins = policies, admins

    async def open(self) -> None:
        """Open the connection pool, start the health checks and the sharing of breakers."""
        await self.context.forwarder.open()
        forwarder = self.context.forwarder
        polling = poll_health(forwarder.session, forwarder.upstreams.all)
        self._tasks.append(asyncio.create_task(polling))
        replicas = self._replicas
        if replicas is not None and replicas.settings.breakers:
            every_s = replicas.settings.sync_s
            sharing = share_breakers(replicas.store, forwarder.upstreams.all, every_s)
            self._tasks.append(asyncio.create_task(sharing))
        if self.policies is not None:
            self.policies.start()

    async def close(self) -> None:
        """Stop the tasks, the screener and the connections."""
        for task in self._tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        if self.policies is not None:
            await self.policies.close()
        self.context.screener.close()
        await self.context.forwarder.close()

    @property
    def plans(self) -> TextPlans:
        """The screens, under the policies in force."""
        return self.context.plans

    def follow(self, config: Config) -> Callable[[], None]:
        """See `server.policies.live.Follower`."""
        context = replace(self.context, config=config, plans=self.context.plans.under(config))

        def swap() -> None:
            self.context = context
            if context.kept is not None:
                context.kept.follow(config)

        return swap

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        if scope["type"] != "http":
            # no policy can read a websocket
            await send({"type": "websocket.close", "code": 1008, "reason": "no websockets here"})
            return
        probes = {"/health": _health, "/ready": self._ready, "/metrics": self._metrics}
        probe = probes.get(scope["path"])
        if probe is not None and scope["method"] in SAFE_METHODS:
            scope["route"] = NamedRoute(scope["path"])
            await probe()(scope, receive, send)
            return
        tracked = TrackedSend(send, exchange_of(Request(scope)))
        try:
            await self._serve(scope, receive, tracked)
        except GuardError as error:
            await tracked.fail(error, scope, receive)
        except Exception:
            logger.exception("request %s failed", exchange_of(Request(scope)).request_id)
            await tracked.fail(internal_error(), scope, receive)

    async def _serve(self, scope: Scope, receive: Receive, send: TrackedSend) -> None:
        context = self.context  # that of this request, whatever changes meanwhile
        server = context.forwarder.upstreams.mcp.get(scope["path"])
        route, template = route_of(scope["method"], scope["path"])
        if server is not None:
            template = scope["path"]
        scope["route"] = NamedRoute(template)
        request = Request(scope, receive)
        exchange = exchange_of(request)
        if request.headers.get("upgrade", "").lower() == "websocket":
            raise UnsupportedUpgrade("No websockets here: nothing reads them. Use HTTP.")
        administration = context.administration
        if administration is not None and administration.answers(scope["path"]):
            await administration(scope, receive, send)
            return
        if scope["path"] == POLICIES and reads_all(self.admins, request.headers):
            await self._policies(None)(scope, receive, send)
            return
        key = authenticate(self.keys, request.headers)
        exchange.identify(context.config, self.keys, key)
        if scope["path"] == POLICIES:
            await self._policies(key)(scope, receive, send)
            return
        if scope["method"] not in SAFE_METHODS:
            await admit(self.keys, key, exchange)
        proxied = (
            ProxiedRequest(context, request, route, exchange, key)
            if server is None
            else McpRequest(context, request, exchange, key, server)
        )
        send.before_end = proxied.record
        await proxied.run(scope, receive, send)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                await self.open()
                await send({"type": "lifespan.startup.complete"})
            else:
                await self.close()
                await send({"type": "lifespan.shutdown.complete"})
                return

    def _ready(self) -> Response:
        """200 while an upstream accepts requests."""
        upstreams = {
            upstream.name: {"ready": upstream.ready, "in_flight": upstream.in_flight}
            for upstream in self.context.forwarder.upstreams.all
        }
        is_ready = any(upstream.ready for upstream in self.context.forwarder.upstreams.all)
        return JSONReply(
            {"status": "ready" if is_ready else "unavailable", "upstreams": upstreams},
            status_code=200 if is_ready else 503,
        )

    def _metrics(self) -> Response:
        return Response(self.metrics.render(), media_type=CONTENT_TYPE_LATEST)

    def _policies(self, key: Principal | None) -> Response:
        config = self.context.config
        data = []
        for name in allowed_policies(config, key):
            policy, plan = config.policy(name), self.context.plans[name]
            data.append(
                {
                    "id": name,
                    "object": "policy",
                    "guards": [screen.name for screen in plan.all_screens],
                    "actions": {screen.name: screen.action for screen in plan.all_screens},
                    "on_error": policy.on_error,
                }
            )
        default = default_policy(config, key)
        return JSONReply({"object": "list", "default": default, "data": data})


def _health() -> Response:
    return JSONReply({"status": "ok"})
