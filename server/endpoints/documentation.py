"""`/openapi.json` and `/docs`: what the server offers, without a key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter
from starlette.responses import HTMLResponse, Response

from server.openapi.page import POLICY, page_of
from server.wire.replies import encode


def documentation_router(document: Mapping[str, Any]) -> APIRouter:
    """The routes that show `document`; both are written once, here."""
    router = APIRouter()
    described, page = encode(document), page_of(document)

    @router.get("/openapi.json")
    async def read_document() -> Response:
        return Response(described, media_type="application/json")

    @router.get("/docs")
    async def read_page() -> Response:
        return HTMLResponse(page, headers={"Content-Security-Policy": POLICY})

    return router
