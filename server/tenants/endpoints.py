"""`/guard/v1/organisations`, `/guard/v1/teams` and `/guard/v1/keys`: for administrators; auditors
may read."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from starlette.responses import Response

from guard.config.schema import Config
from guard.tenants.directory import Directory
from guard.tenants.facts import facts_of
from guard.tenants.keys import admin_ring
from guard.tenants.levels import Kind, Level, LevelSettings
from guard.tenants.store import TenantStore
from server.auth import ADMINS, READERS, authenticate
from server.errors import InvalidParameter
from server.openapi.operation import JSON, LISTING, READING, Operation, Query
from server.wire.body import read_object
from server.wire.queries import whole_number
from server.wire.replies import JSONReply
from server.wire.schemas.answers.tenants import KeyFacts, LevelPage, OrganisationFacts, TeamFacts
from server.wire.schemas.base import Part, parse_request
from server.wire.schemas.tenants import (
    KeyBody,
    LevelBody,
    OrganisationBody,
    RotationBody,
    TeamBody,
)

PAGE, MOST_OF_PAGE = 100, 1000
B = TypeVar("B", bound=Part)
_PAGE = (
    Query(
        name="limit",
        schema={"type": "integer", "minimum": 1, "maximum": MOST_OF_PAGE, "default": PAGE},
        description="How many.",
    ),
    Query(name="after", schema={"type": "string"}, description="An id: those behind it."),
)
_CHANGED = LISTING | {403, 404, 503}


def _parent(name: str) -> Query:
    return Query(name=name, schema={"type": "string"}, description=f"Only those of this {name}.")


def _operations(kind: Any, body: type[Part]) -> tuple[Operation, Operation, Operation, Operation]:
    """To list, make, change and revoke levels of a kind."""
    errors = LISTING | {400, 403, 503}
    listing = Operation(answers={JSON: LevelPage[kind]}, queries=_PAGE, errors=errors, admin=True)
    change = Operation(
        body=LevelBody,
        answers={JSON: kind},
        errors=READING | _CHANGED,
        admin=True,
    )
    making = replace(change, body=body, status=201, errors=change.errors | {409})
    revoking = Operation(answers={JSON: kind}, errors=_CHANGED, admin=True)
    return listing, making, change, revoking


_LIST_ORGANISATIONS, _NEW_ORGANISATION, _SET_ORGANISATION, _REVOKE_ORGANISATION = _operations(
    OrganisationFacts, OrganisationBody
)
_LIST_TEAMS, _NEW_TEAM, _SET_TEAM, _REVOKE_TEAM = _operations(TeamFacts, TeamBody)
_LIST_KEYS, _NEW_KEY, _SET_KEY, _REVOKE_KEY = _operations(KeyFacts, KeyBody)
_ROTATE_KEY = replace(_SET_KEY, body=RotationBody)


def tenants_router(config: Config, directory: Directory) -> APIRouter:
    """The routes, for the administrator's key and the keys of `directory` with a role.

    The database is asked in threads; what is changed is in force when the answer leaves, on this
    server, and within `tenants.refresh_s` on all others.
    """
    router = APIRouter(prefix="/guard/v1")
    ring, store, limits = admin_ring(config, directory), directory.store, config.server

    def changing(request: Request) -> TenantStore:
        """The store, for an administrator, who is named in the audit log."""
        principal = authenticate(ring, request.headers, ADMINS)
        return store.acting(principal.tenant if principal is not None else "")

    async def read_body(request: Request, schema: type[B]) -> tuple[B, dict[str, Any]]:
        raw = await read_object(request, limits.max_body_bytes, limits.request_timeout_s)
        return parse_request(schema, raw), raw

    async def answer(levels: Sequence[Level]) -> list[dict[str, Any]]:
        return await asyncio.to_thread(facts_of, store, levels)

    async def changed(level: Level, *, status: int = 200, **more: str) -> Response:
        await asyncio.to_thread(directory.refresh)
        (facts,) = await answer([level])
        # a key's text must stay in no cache
        headers = {"Cache-Control": "no-store"} if more else {}
        return JSONReply(facts | more, status_code=status, headers=headers)

    async def page(request: Request, kind: Kind, parent: str | None) -> Response:
        authenticate(ring, request.headers, READERS)
        limit = _limit(request.query_params.get("limit"))
        after = _text(request, "after") or ""
        found = await asyncio.to_thread(
            lambda: store.list(kind, parent=parent, after=after, limit=limit + 1)
        )
        shown = found[:limit]
        return JSONReply(
            {
                "object": "list",
                "data": await answer(shown),
                "has_more": len(found) > limit,
                "last_id": shown[-1].id if shown else None,
            }
        )

    async def set_level(request: Request, kind: Kind, identity: str) -> Response:
        store = changing(request)
        body, raw = await read_body(request, LevelBody)
        return await changed(
            await asyncio.to_thread(store.change, kind, identity, body.settings(raw))
        )

    async def revoke(request: Request, kind: Kind, identity: str) -> Response:
        store = changing(request)
        return await changed(await asyncio.to_thread(store.revoke, kind, identity))

    @router.get("/organisations", openapi_extra=_LIST_ORGANISATIONS.as_extra())
    async def list_organisations(request: Request) -> Response:
        """The organisations, by name."""
        return await page(request, "organisation", None)

    @router.post("/organisations", openapi_extra=_NEW_ORGANISATION.as_extra())
    async def create_organisation(request: Request) -> Response:
        """Make an organisation."""
        store = changing(request)
        body, raw = await read_body(request, OrganisationBody)
        settings = _settings(body, raw)
        made = await asyncio.to_thread(store.new_organisation, body.name, settings)
        return await changed(made, status=201)

    @router.patch("/organisations/{organisation}", openapi_extra=_SET_ORGANISATION.as_extra())
    async def set_organisation(request: Request, organisation: str) -> Response:
        """Change some settings of an organisation; null takes one back."""
        return await set_level(request, "organisation", organisation)

    @router.delete("/organisations/{organisation}", openapi_extra=_REVOKE_ORGANISATION.as_extra())
    async def revoke_organisation(request: Request, organisation: str) -> Response:
        """Take an organisation out of use for good, with all its teams and keys."""
        return await revoke(request, "organisation", organisation)

    teams = replace(_LIST_TEAMS, queries=(*_PAGE, _parent("organisation")))

    @router.get("/teams", openapi_extra=teams.as_extra())
    async def list_teams(request: Request) -> Response:
        """The teams, by organisation and name."""
        return await page(request, "team", _text(request, "organisation"))

    @router.post("/teams", openapi_extra=_NEW_TEAM.as_extra())
    async def create_team(request: Request) -> Response:
        """Make a team of an organisation."""
        store = changing(request)
        body, raw = await read_body(request, TeamBody)
        settings = _settings(body, raw)
        made = await asyncio.to_thread(store.new_team, body.organisation, body.name, settings)
        return await changed(made, status=201)

    @router.patch("/teams/{organisation}/{team}", openapi_extra=_SET_TEAM.as_extra())
    async def set_team(request: Request, organisation: str, team: str) -> Response:
        """Change some settings of a team; null takes one back."""
        return await set_level(request, "team", f"{organisation}/{team}")

    @router.delete("/teams/{organisation}/{team}", openapi_extra=_REVOKE_TEAM.as_extra())
    async def revoke_team(request: Request, organisation: str, team: str) -> Response:
        """Take a team out of use for good, with all its keys."""
        return await revoke(request, "team", f"{organisation}/{team}")

    keys = replace(_LIST_KEYS, queries=(*_PAGE, _parent("team")))

    @router.get("/keys", openapi_extra=keys.as_extra())
    async def list_keys(request: Request) -> Response:
        """The keys, by id."""
        return await page(request, "key", _text(request, "team"))

    @router.post("/keys", openapi_extra=_NEW_KEY.as_extra())
    async def create_key(request: Request) -> Response:
        """Make a key, which this answer tells and no other."""
        store = changing(request)
        body, raw = await read_body(request, KeyBody)
        expires = time.time() + body.expires_in if body.expires_in is not None else None
        settings = _settings(body, raw)
        made, text = await asyncio.to_thread(
            lambda: store.new_key(body.team, body.name, settings, role=body.role, expires=expires)
        )
        return await changed(made, status=201, key=text)

    @router.patch("/keys/{key}", openapi_extra=_SET_KEY.as_extra())
    async def set_key(request: Request, key: str) -> Response:
        """Change some settings of a key; null takes one back."""
        return await set_level(request, "key", key)

    @router.post("/keys/{key}/rotate", openapi_extra=_ROTATE_KEY.as_extra())
    async def rotate_key(request: Request, key: str) -> Response:
        """Replace a key by a new one, which this answer tells and no other."""
        store = changing(request)
        body, _ = await read_body(request, RotationBody)
        rotated, text = await asyncio.to_thread(store.rotate, key, body.overlap)
        return await changed(rotated, key=text)

    @router.delete("/keys/{key}", openapi_extra=_REVOKE_KEY.as_extra())
    async def revoke_key(request: Request, key: str) -> Response:
        """Take a key out of use for good."""
        return await revoke(request, "key", key)

    return router


def _settings(body: LevelBody, raw: dict[str, Any]) -> LevelSettings:
    return LevelSettings().changed(body.settings(raw))


def _text(request: Request, name: str) -> str | None:
    """A parameter of the query. Raises InvalidParameter for what no id can be."""
    value = request.query_params.get(name)
    if value is not None and (len(value) > 200 or "\0" in value):
        raise InvalidParameter(f"'{name}' is an id.", param=name)
    return value


def _limit(given: str | None) -> int:
    return PAGE if given is None else whole_number("limit", given, MOST_OF_PAGE)
