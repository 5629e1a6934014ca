"""`/health`, `/ready` and `/metrics`: for load balancers and Prometheus, so without a key."""

from __future__ import annotations

from collections.abc import Mapping

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

from server.observe.metrics import Metrics
from server.services.interface import Service
from server.wire.replies import JSONReply


def probes_router(services: Mapping[str, Service], metrics: Metrics) -> APIRouter:
    """The routes that machines watch."""
    router = APIRouter()

    @router.get("/health")
    async def health() -> Response:
        """200 while the process answers at all."""
        return JSONReply({"status": "ok"})

    @router.get("/ready")
    async def ready() -> Response:
        """200 while every model takes requests, else 503."""
        models = {
            name: {"ready": service.ready(), "queued": service.queued()}
            for name, service in services.items()
        }
        every = all(service.ready() for service in services.values())
        return JSONReply(
            {"status": "ready" if every else "unavailable", "models": models},
            status_code=200 if every else 503,
        )

    @router.get("/metrics")
    async def read_metrics() -> Response:
        return Response(metrics.render(), media_type=CONTENT_TYPE_LATEST)

    return router
