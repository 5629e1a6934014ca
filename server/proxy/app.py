"""The proxy as an ASGI app: who asks, under which policy, and on to the upstream."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from guard.config.keys import KeyRing
from guard.config.schema import KeyConfig
from guard.errors import GuardError
from server.auth import allowed_policies, authenticate, default_policy
from server.errors import internal_error
from server.observe.exchange import NamedRoute, exchange_of
from server.observe.metrics import Metrics
from server.proxy.health import watch_health
from server.proxy.request import READS, ProxiedRequest, ProxyContext
from server.proxy.tracked_send import TrackedSend
from server.screening.routes import route_of
from server.wire.replies import JSONReply

logger = logging.getLogger(__name__)


class ProxyApp:
    """What `desk` holds is opened and closed with the app. `keys` None leaves the proxy open."""

    def __init__(self, desk: ProxyContext, keys: KeyRing | None, metrics: Metrics) -> None:
        self.desk, self.keys, self.metrics = desk, keys, metrics
        self._watch: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Connect, and begin to look after the upstreams' health."""
        await self.desk.forwarder.open()
        self._watch = asyncio.create_task(watch_health(self.desk.forwarder))

    async def close(self) -> None:
        """Let go of everything."""
        if self._watch is not None:
            self._watch.cancel()
            with suppress(asyncio.CancelledError):
                await self._watch
        self.desk.screener.close()
        await self.desk.forwarder.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        if scope["type"] != "http":
            # nobody reads what goes over a websocket, under any policy
            await send({"type": "websocket.close", "code": 1008, "reason": "no websockets here"})
            return
        own = {"/health": _health, "/ready": self._ready, "/metrics": self._metrics}.get(
            scope["path"]
        )
        if own is not None and scope["method"] in READS:
            scope["route"] = NamedRoute(scope["path"])
            await own()(scope, receive, send)
            return
        watched = TrackedSend(send)
        try:
            await self._serve(scope, receive, watched)
        except GuardError as error:
            await watched.fail(error, scope, receive)
        except Exception:
            logger.exception("request %s failed", exchange_of(Request(scope)).request_id)
            await watched.fail(internal_error(), scope, receive)

    async def _serve(self, scope: Scope, receive: Receive, send: TrackedSend) -> None:
        route, template = route_of(scope["method"], scope["path"])
        scope["route"] = NamedRoute(template)
        request = Request(scope, receive)
        key = authenticate(self.keys, request.headers)
        if scope["path"] == "/guard/v1/policies":
            await self._policies(key)(scope, receive, send)
            return
        if self.keys is not None and key is not None and scope["method"] not in READS:
            self.keys.take(key)
        exchange = exchange_of(request)
        visit = ProxiedRequest(self.desk, request, route, exchange, key)
        await visit.run(scope, receive, send)

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
        """200 while an upstream takes requests."""
        upstreams = {
            each.name: {"ready": each.ready, "in_flight": each.in_flight}
            for each in self.desk.forwarder.upstreams.all
        }
        some = any(each.ready for each in self.desk.forwarder.upstreams.all)
        return JSONReply(
            {"status": "ready" if some else "unavailable", "upstreams": upstreams},
            status_code=200 if some else 503,
        )

    def _metrics(self) -> Response:
        return Response(self.metrics.render(), media_type=CONTENT_TYPE_LATEST)

    def _policies(self, key: KeyConfig | None) -> Response:
        config = self.desk.config
        data = []
        for name in allowed_policies(config, key):
            policy, plan = config.policy(name), self.desk.plans[name]
            data.append(
                {
                    "id": name,
                    "object": "policy",
                    "guards": [screen.name for screen in plan.screens],
                    "actions": {screen.name: screen.action for screen in plan.screens},
                    "on_error": policy.on_error,
                }
            )
        default = default_policy(config, key)
        return JSONReply({"object": "list", "default": default, "data": data})


def _health() -> Response:
    return JSONReply({"status": "ok"})
