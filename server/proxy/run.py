"""From a configuration to a running proxy."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import uvicorn

from guard.config.schema import Config
from guard.errors import ConfigError
from guard.plans.screens import TextPlans
from server.edge.http_edge import edged
from server.lifecycle.connections import ConnectionLimits, bounded_http
from server.lifecycle.graceful import GracefulServer
from server.lifecycle.surroundings import opened_surroundings
from server.observe.log_rotation import rotate
from server.observe.middleware import ExchangeMiddleware
from server.observe.recorder import Recorder
from server.proxy.administration import administer, of_proxy
from server.proxy.app import ProxyApp
from server.proxy.forwarding.forward import Forwarder
from server.proxy.forwarding.upstreams import Upstreams
from server.proxy.metrics import register_upstream_metrics
from server.proxy.request import ProxyContext
from server.screening.kept import KeptTexts
from server.screening.texts.screener import Screener


def run_proxy(
    config: Config, listener: socket.socket, announce: Callable[[list[str]], None]
) -> None:
    """Serve the proxy of `config` on `listener` until a signal.

    SIGTERM lets running responses end; SIGHUP reopens the audit log. `announce` is called with the
    upstreams' names once requests are accepted. Raises ConfigError where there is no upstream or a
    credential is missing, PolicyUnfit where all guards of the default policy act inside models,
    GuardFailed where it cannot be applied for another reason.
    """
    if not config.upstreams:
        raise ConfigError(["there is no upstream: give --upstream URL, or add [[upstreams]]"])
    config = of_proxy(config)
    plans = TextPlans(config, runs_models=False)
    plans[config.server.default_policy].require_whole()
    upstreams = Upstreams(config.upstreams)
    with opened_surroundings(config) as around:
        metrics, audit, tracing = around.metrics, around.audit, around.tracing
        recorder = Recorder(metrics.verdicts, audit, tracing)
        context = ProxyContext(
            config,
            plans,
            Screener(plans.cascade, plans.images, timed=metrics.verdicts.time_reading),
            Forwarder(upstreams, config.proxy),
            recorder.record,
            kept=KeptTexts(config.live_policies.kept_texts),
        )
        app = ProxyApp(context, around.keys, metrics, around.replicas)
        administer(app, config, around.directory, recorder, metrics)
        register_upstream_metrics(upstreams, metrics.registry)
        server = GracefulServer(
            uvicorn.Config(
                edged(ExchangeMiddleware(app, metrics, tracing), app.context.paths, config.server),
                log_level="warning",
                access_log=False,
                server_header=False,
                proxy_headers=False,  # the client's address is not used
                ws="none",
                http=bounded_http(ConnectionLimits.of_process(has_upstreams=True)),
                lifespan="on",
                timeout_graceful_shutdown=config.proxy.drain_timeout_s,
            ),
            {},
            on_ready=lambda: announce([upstream.name for upstream in upstreams.all]),
            on_stop=recorder.traffic.stop if recorder.traffic is not None else None,
            on_hangup=partial(rotate, audit) if audit else None,
        )
        with suppress(KeyboardInterrupt):
            server.run(sockets=[listener])
