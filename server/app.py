"""The HTTP application: the endpoints of OpenAI's and Anthropic's APIs, health, readiness and
metrics."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute

from guard import __version__
from guard.config.schema import Config
from guard.tenants.directory import Directory
from guard.tenants.keys import KeyRing, admin_ring
from server.console.endpoints import caller_router, traffic_router
from server.console.kept_texts import TrafficTexts
from server.console.pages import console_router
from server.edge.http_edge import edged
from server.edge.paths import KnownPaths
from server.endpoints.documentation import documentation_router
from server.endpoints.gateway import Gateway
from server.endpoints.images import images_router
from server.endpoints.listings import listings_router
from server.endpoints.moderations import moderations_router
from server.endpoints.probes import probes_router
from server.endpoints.text.chat import chat_router
from server.endpoints.text.completions import completions_router
from server.endpoints.text.embeddings import embeddings_router
from server.endpoints.text.messages import messages_router
from server.endpoints.text.responses import responses_router
from server.errors import install_error_handlers
from server.observe.metrics import Metrics
from server.observe.middleware import ExchangeMiddleware
from server.observe.tracing import OFF, Tracing
from server.observe.traffic import Traffic
from server.openapi.document import document_of
from server.policies.live import LiveConfiguration
from server.screening.middleware import ScreenMiddleware, Screens
from server.services.interface import Service

if TYPE_CHECKING:
    from server.erasures.service import Erasures
    from server.policies.service import LivePolicies

logger = logging.getLogger(__name__)


def create_app(
    config: Config,
    services: Mapping[str, Service],
    *,
    keys: KeyRing | None = None,
    metrics: Metrics | None = None,
    screens: Screens | None = None,
    erasures: Erasures | None = None,
    directory: Directory | None = None,
    tracing: Tracing = OFF,
    traffic: Traffic | None = None,
    live: LiveConfiguration | None = None,
    policies: LivePolicies | None = None,
) -> FastAPI:
    """The ASGI app that serves `services`, by model name, under `config`.

    `keys` None leaves the server open. `metrics` must be the object in which the services' `record`
    callable counts verdicts: `/metrics` shows it. `screens` read the text of requests and answers
    under policies with text screens. `erasures` are offered where they are given, and the tenants
    of `directory`. `tracing` makes spans of requests, of which `traffic` has the last verdicts, for
    administrators and auditors. `policies` change `live`, the configuration that requests are
    admitted under. The services are closed when the app's lifespan ends.
    """
    metrics = metrics or Metrics()
    metrics.add_services(services)

    if live is None:
        live = erasures.live if erasures is not None else LiveConfiguration(config)

    def configured() -> Config:
        return live.config

    gateway = Gateway(config, services, keys, metrics, configured)
    admins = admin_ring(config, directory)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        if erasures is not None:
            await erasures.start()
        if policies is not None:
            policies.start()
        yield
        if policies is not None:
            await policies.close()
        if erasures is not None:
            await erasures.close()
        if screens is not None:
            screens.screener.close()
        close_services(services)

    app = FastAPI(
        title="inference-guard",
        version=__version__,
        lifespan=lifespan,
        openapi_url=None,  # handlers read bodies and write answers themselves
        redirect_slashes=False,
    )
    routers = [
        chat_router(gateway),
        completions_router(gateway),
        responses_router(gateway),
        messages_router(gateway),
        embeddings_router(gateway),
        images_router(gateway),
        listings_router(gateway, admins),
        probes_router(services, metrics),
    ]
    if screens is not None:
        app.add_middleware(
            ScreenMiddleware, config=config, screens=screens, keys=keys, current=configured
        )
        routers.append(moderations_router(gateway, screens))
    if admins is not None:
        # imported here: it needs torch, and the proxy, which has parts of this module, none
        from server.endpoints.lists import lists_router

        settle = erasures.settle if erasures is not None else lambda: None
        routers.append(lists_router(services, configured, admins, live.changing, settle))
    if policies is not None and admins is not None:
        # imported here: the proxy, which has parts of this module, need not have what it needs
        from server.policies.endpoints import Administration, policies_router
        from server.policies.replaying import Replays

        replays = (
            Replays(lambda: screens.plans, screens.screener, screens.kept)
            if screens is not None
            else Replays(lambda: None, None, None)
        )
        routers.append(policies_router(config, Administration(policies, replays, admins)))
    if erasures is not None:
        # imported here: their pages need what only the extra `fit` has
        from server.erasures.endpoints import erasures_router

        assert admins is not None
        routers.append(erasures_router(config, erasures, admins))
    if directory is not None:
        from server.tenants.endpoints import tenants_router

        routers.append(tenants_router(config, directory))
    routers.append(console_router())
    if traffic is not None and admins is not None:
        routers.append(traffic_router(traffic, admins, _texts(screens)))
    offers = {
        "traffic": traffic,
        "erasures": erasures,
        "tenants": directory,
        "live_policies": policies,
    }
    here = [name for name, part in offers.items() if part is not None]
    routers.append(caller_router(keys, admins, here, ["models", "policies"]))
    document = document_of(
        _routes(routers), title=app.title, version=__version__, keyed=keys is not None
    )
    routers.append(documentation_router(document))
    for router in routers:
        app.include_router(router)
    paths = KnownPaths((route.path, route.methods or ()) for route in _routes(routers))
    app.add_middleware(ExchangeMiddleware, metrics=metrics, tracing=tracing)
    app.add_middleware(edged, paths=paths, settings=config.server)  # the outermost
    install_error_handlers(app, paths)
    return app


def _texts(screens: Screens | None) -> TrafficTexts | None:
    """The kept texts of the last requests, where there are screens that keep any."""
    if screens is None or screens.kept is None:
        return None
    return TrafficTexts(screens.kept, screens.recorder.audit)


def _routes(routers: Sequence[APIRouter]) -> list[APIRoute]:
    return [r for router in routers for r in router.routes if isinstance(r, APIRoute)]


def close_services(services: Mapping[str, Service]) -> None:
    """Close every service; an error in one is logged and does not keep the others open."""
    for name, service in services.items():
        try:
            service.close()
        except Exception:
            logger.exception("closing the model %s failed", name)
