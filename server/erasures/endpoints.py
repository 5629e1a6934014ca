"""`/guard/v1/erasures`, for administrators; auditors may read."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse, Response

from guard.certificate import Certificate
from guard.config.schema import Config
from guard.tenants.keys import KeyRing
from server.auth import ADMINS, READERS, authenticate
from server.erasures.bodies import asked_in, erasure_object
from server.erasures.events import ProgressStream
from server.erasures.page import as_page
from server.erasures.service import Erasures
from server.errors import InvalidParameter
from server.openapi.operation import JSON, LISTING, READING, Operation, Query
from server.wire.body import read_object
from server.wire.queries import whole_number
from server.wire.replies import JSONReply
from server.wire.schemas.answers.erasures import Erasure, ErasureEvent, ErasureList
from server.wire.schemas.base import parse_request
from server.wire.schemas.erasures import ErasureRequest, StateRequest

PAGE, MOST_OF_PAGE = 20, 100
_READ = Operation(answers={JSON: Erasure}, errors=LISTING | {404}, admin=True)
_CHANGE = replace(_READ, errors=_READ.errors | {409, 503})
_MOVE = replace(_CHANGE, body=StateRequest, errors=_CHANGE.errors | READING)
_CREATE = replace(_MOVE, body=ErasureRequest, status=202)
_PROGRESS = replace(_READ, answers={}, events=(ErasureEvent,))
_LIST = Operation(
    answers={JSON: ErasureList},
    queries=(
        Query(
            name="limit",
            schema={"type": "integer", "minimum": 1, "maximum": MOST_OF_PAGE, "default": PAGE},
            description="How many.",
        ),
        Query(name="after", schema={"type": "string"}, description="An id: those behind it."),
    ),
    errors=LISTING | {400, 404},
    admin=True,
)
_CERTIFICATE = Operation(
    answers={JSON: Certificate, "text/html": str},
    queries=(
        Query(
            name="format",
            schema={"enum": ["json", "html"]},
            description="JSON or a page, in place of what the header Accept says.",
        ),
    ),
    errors=LISTING | {400, 404},
    admin=True,
)
_NOTHING_LOADED = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def erasures_router(config: Config, erasures: Erasures, admins: KeyRing) -> APIRouter:
    """The routes of erasures, for keys in `admins`."""
    router = APIRouter(prefix="/guard/v1/erasures")
    limits = config.server

    @router.post("", openapi_extra=_CREATE.as_extra())
    async def create_erasure(request: Request) -> Response:
        """Ask for an erasure, which is fitted in the background."""
        authenticate(admins, request.headers, ADMINS)
        raw = await read_object(request, limits.max_body_bytes, limits.request_timeout_s)
        body = parse_request(ErasureRequest, raw)
        asked = asked_in(body, config, erasures)
        record = await erasures.create(asked, body.documents)
        return JSONReply(erasure_object(record, erasures), status_code=202)

    @router.get("", openapi_extra=_LIST.as_extra())
    async def list_erasures(request: Request) -> Response:
        """The newest first; `after` is the id of the last one of the page before."""
        authenticate(admins, request.headers, READERS)
        limit = _limit(request.query_params.get("limit"))
        records = erasures.newest()
        if after := request.query_params.get("after"):
            records = records[records.index(erasures.get(after)) + 1 :]
        page = records[:limit]
        return JSONReply(
            {
                "object": "list",
                "data": [erasure_object(record, erasures) for record in page],
                "has_more": len(records) > limit,
                "last_id": page[-1].id if page else None,
            }
        )

    @router.get("/{erasure}", openapi_extra=_READ.as_extra())
    async def retrieve_erasure(request: Request, erasure: str) -> Response:
        """One erasure."""
        authenticate(admins, request.headers, READERS)
        return JSONReply(erasure_object(erasures.get(erasure), erasures))

    @router.get("/{erasure}/events", openapi_extra=_PROGRESS.as_extra())
    async def stream_progress(request: Request, erasure: str) -> Response:
        """Events of an erasure, until it is in a final state."""
        authenticate(admins, request.headers, READERS)
        return ProgressStream(erasures, erasures.get(erasure).id)

    @router.post("/{erasure}/state", openapi_extra=_MOVE.as_extra())
    async def change_state(request: Request, erasure: str) -> Response:
        """Move an erasure between shadow and in force."""
        authenticate(admins, request.headers, ADMINS)
        raw = await read_object(request, limits.max_body_bytes, limits.request_timeout_s)
        body = parse_request(StateRequest, raw)
        # to its end, also where the client hangs up
        record = await asyncio.shield(erasures.enter(erasure, body.state))
        return JSONReply(erasure_object(record, erasures))

    @router.delete("/{erasure}", openapi_extra=_CHANGE.as_extra())
    async def withdraw_erasure(request: Request, erasure: str) -> Response:
        """Take the guards of an erasure out of all policies, or end its fit."""
        authenticate(admins, request.headers, ADMINS)
        record = await asyncio.shield(erasures.withdraw(erasure))
        return JSONReply(erasure_object(record, erasures))

    @router.get("/{erasure}/certificate", openapi_extra=_CERTIFICATE.as_extra())
    async def retrieve_certificate(request: Request, erasure: str) -> Response:
        """The certificate of an erasure.

        JSON, or a page where `format=html` or the header Accept asks for one.
        """
        authenticate(admins, request.headers, READERS)
        wanted = request.query_params.get("format")
        if wanted not in {None, "json", "html"}:
            raise InvalidParameter("'format' is 'json' or 'html'.", param="format")
        certificate = erasures.certificate(erasure)
        if wanted == "html" or (wanted is None and _wants_page(request)):
            headers = {"Content-Security-Policy": _NOTHING_LOADED}
            return HTMLResponse(as_page(certificate), headers=headers)
        return JSONReply(certificate.model_dump(mode="json"))

    return router


def _limit(given: str | None) -> int:
    return PAGE if given is None else whole_number("limit", given, MOST_OF_PAGE)


def _wants_page(request: Request) -> bool:
    kinds = [
        part.partition(";")[0].strip() for part in request.headers.get("accept", "").split(",")
    ]
    return "text/html" in kinds and "application/json" not in kinds
