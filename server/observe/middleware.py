"""The outermost middleware: request id, `X-` headers, metrics, traces, and unforeseen errors."""

from __future__ import annotations

import logging
import time
from http import HTTPStatus

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import ClientGone, error_response, internal_error
from server.observe.exchange import SCOPE_KEY, Exchange
from server.observe.metrics import Metrics
from server.observe.tracing import OFF, Tracing

logger = logging.getLogger(__name__)


class ExchangeMiddleware:
    """Puts an `Exchange` into the scope of each request, counts it in the metrics and traces it."""

    def __init__(self, app: ASGIApp, metrics: Metrics, tracing: Tracing = OFF) -> None:
        self.app = app
        self.metrics, self.tracing = metrics, tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange = Exchange.of(scope)
        scope[SCOPE_KEY] = exchange
        exchange.trace = self.tracing.begin(scope, exchange.request_id)
        start = time.perf_counter()
        status: int | None = None

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message).update(exchange.headers())
            await send(message)

        try:
            await self.app(scope, receive, send_with_headers)
        except Exception:
            if status is not None:
                raise  # the response has started: uvicorn logs the error and cuts the connection
            logger.exception("request %s failed", exchange.request_id)
            status = HTTPStatus.INTERNAL_SERVER_ERROR
            await error_response(internal_error(), exchange)(scope, receive, send_with_headers)
        finally:
            exchange.end()
            # No response at all means that the client has disconnected.
            ended = ClientGone.status if status is None else status
            path = getattr(scope.get("route"), "path", "unknown")
            seconds = time.perf_counter() - start
            self.metrics.observe_request(path=path, status=ended, seconds=seconds)
            exchange.trace.end(ended, path, exchange.policy, exchange.outcome)
