"""`/health`, `/ready` and `/metrics`, without a key: for load balancers and Prometheus."""

from __future__ import annotations

from collections.abc import Mapping

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

from server.observe.metrics import Metrics
from server.openapi.operation import JSON, Operation
from server.services.interface import Service
from server.wire.replies import JSONReply
from server.wire.schemas.answers.listings import Health, Readiness

_HEALTH = Operation(answers={JSON: Health})
_READINESS = Operation(answers={JSON: Readiness}, also=(503,))
_METRICS = Operation(answers={"text/plain": str})


def probes_router(services: Mapping[str, Service], metrics: Metrics) -> APIRouter:
    """The routes of health, readiness and metrics."""
    router = APIRouter()

    @router.get("/health", openapi_extra=_HEALTH.as_extra())
    async def health() -> Response:
        """200 while the process answers."""
        return JSONReply({"status": "ok"})

    @router.get("/ready", openapi_extra=_READINESS.as_extra())
    async def readiness() -> Response:
        """200 while every model takes requests, else 503."""
        models = {
            name: {"ready": service.ready(), "queued": service.queued()}
            for name, service in services.items()
        }
        ready = all(service.ready() for service in services.values())
        return JSONReply(
            {"status": "ready" if ready else "unavailable", "models": models},
            status_code=200 if ready else 503,
        )

    @router.get("/metrics", openapi_extra=_METRICS.as_extra())
    async def read_metrics() -> Response:
        """Figures for Prometheus."""
        return Response(metrics.render(), media_type=CONTENT_TYPE_LATEST)

    return router
