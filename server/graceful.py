"""A uvicorn server that stops without losing an answer or an audit line."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Mapping

import uvicorn

from server.app import close_services
from server.service import Service

GRACE_S = 10.0
"""How long running answers may take to end after a stop signal before they are ended."""


class GracefulServer(uvicorn.Server):
    """Lets running requests end for `grace_s` seconds, then ends them with ServiceStopped."""

    def __init__(
        self,
        config: uvicorn.Config,
        services: Mapping[str, Service],
        *,
        on_ready: Callable[[], None],
        grace_s: float = GRACE_S,
    ) -> None:
        super().__init__(config)
        self.services = services
        self.on_ready = on_ready
        self.grace_s = grace_s

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self.on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        closing = asyncio.get_running_loop().call_later(self.grace_s, close_services, self.services)
        try:
            await super().shutdown(sockets)
        finally:
            closing.cancel()
