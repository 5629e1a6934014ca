"""`/v1/moderations`: the findings of the configured text screens."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from server.endpoints.gateway import Gateway
from server.openapi.operation import JSON, SCREENING, Operation
from server.screening.middleware import Screens
from server.screening.texts.moderation import moderate, screens_for
from server.screening.texts.turns import caller_of
from server.wire.body import read_object
from server.wire.replies import JSONReply
from server.wire.schemas.answers.moderations import Moderation
from server.wire.schemas.moderations import ModerationRequest

_OPERATION = Operation(body=ModerationRequest, answers={JSON: Moderation}, errors=SCREENING)


def moderations_router(gateway: Gateway, screens: Screens) -> APIRouter:
    """The route of moderations; a server with keys requires one."""
    router = APIRouter()

    @router.post("/v1/moderations", openapi_extra=_OPERATION.as_extra())
    async def create_moderation(request: Request) -> Response:
        """The scores of texts under every screen that the caller may use."""
        key = gateway.authenticate(request)
        await gateway.count(request, key)
        limits = gateway.config.server
        body = await read_object(request, limits.max_body_bytes, limits.request_timeout_s)
        allowed = screens_for(gateway.current(), screens.plans, key)
        caller = caller_of(key, request.scope)
        return JSONReply(await moderate(body, allowed, screens.screener, caller))

    return router
