"""The outermost middleware: request id, `X-` headers, HTTP metrics, and unforeseen errors."""

from __future__ import annotations

import logging
import time
from http import HTTPStatus

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import ClientGone, error_response, internal_error
from server.observe.exchange import SCOPE_KEY, Exchange
from server.observe.metrics import Metrics

logger = logging.getLogger(__name__)


class ExchangeMiddleware:
    """Puts an `Exchange` into the scope of each request and counts it in the metrics."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange = Exchange.of(scope)
        scope[SCOPE_KEY] = exchange
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
            self.metrics.observe_request(
                path=getattr(scope.get("route"), "path", "unknown"),
                status=ClientGone.status if status is None else status,
                seconds=time.perf_counter() - start,
            )
