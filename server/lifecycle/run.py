"""From a configuration to a running server."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import uvicorn

from guard.config.schema import Config
from server.lifecycle.connections import ConnectionLimits, bounded_http
from server.lifecycle.graceful import GRACE_S, GracefulServer
from server.lifecycle.opening import opened_app
from server.observe.log_rotation import rotate


def run_server(
    config: Config,
    listener: socket.socket,
    announce: Callable[[list[str]], None],
    *,
    stop: threading.Event | None = None,
) -> None:
    """Build the services of `config`, serve them on `listener` until a signal, close everything.

    SIGHUP reopens the audit log, so that it can be rotated. `announce` is called with the models'
    names once requests are accepted. `stop` ends the server as a signal does, which only a main
    thread gets.
    """
    with opened_app(config) as opened:
        settings = uvicorn.Config(
            opened.app,
            log_level="warning",
            access_log=False,
            server_header=False,
            ws="none",
            http=bounded_http(ConnectionLimits.of_process(has_upstreams=False)),
            # After the grace period all rows have ended: only clients that do not read still hang.
            timeout_graceful_shutdown=int(GRACE_S) + 5,
        )
        server = GracefulServer(
            settings,
            opened.services,
            on_ready=lambda: announce(list(opened.services)),
            on_hangup=partial(rotate, opened.audit) if opened.audit else None,
            on_stop=opened.stop_streams,
        )
        if stop is not None:
            threading.Thread(target=_end_on, args=(stop, server), daemon=True).start()
        with suppress(KeyboardInterrupt):
            server.run(sockets=[listener])


def _end_on(stop: threading.Event, server: GracefulServer) -> None:
    stop.wait()
    server.should_exit = True
