"""From a configuration to a running server."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import nullcontext, suppress
from functools import partial

import uvicorn

from guard.audit import AuditLog
from guard.config.keys import KeyRing
from guard.config.schema import Config
from guard.plans.screens import TextPlans
from server.app import create_app
from server.edge.protocol import http_protocol
from server.lifecycle.graceful import GRACE_S, GracefulServer
from server.observe.log_rotation import rotate
from server.observe.metrics import Metrics
from server.observe.recorder import Recorder
from server.screening.middleware import Screens
from server.screening.texts.screener import Screener
from server.services.build import build_services


def run_server(
    config: Config, listener: socket.socket, announce: Callable[[list[str]], None]
) -> None:
    """Build the services of `config`, serve them on `listener` until a signal, close everything.

    SIGHUP reopens the audit log, so that it can be rotated. `announce` is called with the models'
    names once requests are accepted.
    """
    metrics = Metrics()
    path = config.server.audit_log
    with AuditLog(path) if path else nullcontext() as audit:
        recorder = Recorder(metrics.verdicts, audit)
        screens = _screens(config, recorder)
        services = build_services(config, recorder)
        keys = KeyRing(config.keys) if config.keys else None
        settings = uvicorn.Config(
            create_app(config, services, keys=keys, metrics=metrics, screens=screens),
            http=http_protocol(),
            log_level="warning",
            access_log=False,
            server_header=False,
            # After the grace period all rows have ended: only clients that do not read still hang.
            timeout_graceful_shutdown=int(GRACE_S) + 5,
        )
        server = GracefulServer(
            settings,
            services,
            on_ready=lambda: announce(list(services)),
            on_hangup=partial(rotate, audit) if audit else None,
        )
        with suppress(KeyboardInterrupt):
            server.run(sockets=[listener])


def _screens(config: Config, recorder: Recorder) -> Screens | None:
    """The text screens, None where no policy has any."""
    plans = TextPlans(config)
    if not (plans.active or plans.screens):
        return None
    return Screens(plans, Screener(plans.encoder, plans.heads), recorder)
