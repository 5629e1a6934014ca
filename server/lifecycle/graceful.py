"""A uvicorn server that stops without losing an answer or an audit line."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress

import uvicorn

from server.app import close_services
from server.services.interface import Service

GRACE_S = 10.0
"""Seconds that running requests have after a stop signal."""


class GracefulServer(uvicorn.Server):
    """On a stop signal, waits `grace_s` seconds for running requests, then ends them with
    ServiceStopped.

    `on_ready` is called once requests are accepted, `on_stop` when the server is about to stop,
    `on_hangup` on the event loop for each SIGHUP,
    where the system has that signal.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        services: Mapping[str, Service],
        *,
        on_ready: Callable[[], None],
        on_hangup: Callable[[], None] | None = None,
        on_stop: Callable[[], None] | None = None,
        grace_s: float = GRACE_S,
    ) -> None:
        super().__init__(config)
        self.services = services
        self.on_ready = on_ready
        self.on_hangup = on_hangup
        self.on_stop = on_stop
        self.grace_s = grace_s

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, but the signal that stopped the server is not raised again: SIGTERM would
        end the process before what is open around the server is closed (audit log, counters)."""
        with super().capture_signals():
            yield
            self._captured_signals.clear()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        if self.on_hangup is not None:
            # Not signal.signal: its handler could run while this thread holds the audit log's lock.
            with suppress(NotImplementedError, AttributeError):
                asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self.on_hangup)
        await super().startup(sockets)
        if self.started:
            self.on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self.on_stop is not None:
            self.on_stop()
        closing = asyncio.get_running_loop().call_later(self.grace_s, close_services, self.services)
        try:
            await super().shutdown(sockets)
        finally:
            closing.cancel()
