"""`POST /guard/v1/lists/reload`: suppression lists as their files are now, while requests run."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from fastapi import APIRouter, Request
from starlette.responses import Response

from guard.config.schema import Config
from guard.plans.language import LanguagePlans
from guard.tenants.keys import KeyRing
from server.auth import ADMINS, authenticate
from server.openapi.operation import JSON, LISTING, Operation
from server.services.interface import Service
from server.services.text import BatchedTextService
from server.wire.replies import JSONReply
from server.wire.schemas.answers.listings import ReloadedLists

_OPERATION = Operation(answers={JSON: ReloadedLists}, errors=LISTING | {503}, admin=True)


def lists_router(
    services: Mapping[str, Service],
    config: Callable[[], Config],
    admins: KeyRing,
    changing: asyncio.Lock,
    reloaded: Callable[[], None] = lambda: None,
) -> APIRouter:
    """The route, for the keys of administrators, which are in `admins`. `config` gives the
    configuration that requests are admitted under; `changing` is held by whoever changes their
    plans, of which an earlier one must not overwrite a later one; `reloaded` is called behind each
    reload."""
    router = APIRouter(prefix="/guard/v1/lists")
    languages = {
        name: service
        for name, service in services.items()
        if isinstance(service, BatchedTextService)
    }

    def reload(name: str, service: BatchedTextService) -> Mapping[str, int]:
        plans = LanguagePlans(config(), service.plans.served, name=name)
        service.use(plans).result()
        return plans.lists

    @router.post("/reload", openapi_extra=_OPERATION.as_extra())
    async def reload_lists(request: Request) -> Response:
        """Read the suppression lists again; how many names each has now, by model."""
        authenticate(admins, request.headers, ADMINS)
        async with changing:
            found = {
                name: dict(await asyncio.to_thread(reload, name, service))
                for name, service in languages.items()
            }
            reloaded()
        return JSONReply({"object": "lists", "models": found})

    return router
