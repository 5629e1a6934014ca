"""Our routes in vLLM's HTTP server, as a plugin of its group `vllm.endpoint_plugins`.

vLLM loads such a plugin only where VLLM_PLUGINS names it, and then no other plugin that is not
named. The middleware must not depend on that, so the plugin is attached where GUARD_CONFIG is set.
"""

from __future__ import annotations

import os
from argparse import Namespace
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, FastAPI, Request
from starlette.datastructures import State
from starlette.responses import Response

from guard.config.schema import Config, load_config
from guard.config.vllm_plugin import CONFIG
from guard.errors import GuardError
from guard.tenants.keys import admin_ring
from server.auth import ADMINS, authenticate
from server.errors import UnknownRoute, error_response
from server.screening.texts.moderation import moderate, screens_of
from server.screening.texts.turns import caller_of
from server.vllm.http.middleware import HttpGuard, policies_of
from server.vllm.recording import process_recording
from server.vllm.reload import reload
from server.wire.body import read_object
from server.wire.replies import JSONReply

if TYPE_CHECKING:
    from vllm.tasks import SupportedTask


class GuardEndpoints:
    """An `EndpointPlugin`: the routes, and the middleware around all routes."""

    name = "inference-guard"
    required_tasks: tuple[SupportedTask, ...] | None = None

    def attach_router(self, app: FastAPI) -> None:
        """Add routes and middleware to `app`; nothing without GUARD_CONFIG."""
        if not (path := os.environ.get(CONFIG)):
            return
        config = load_config(path)
        app.add_middleware(HttpGuard, recording=process_recording())
        app.include_router(_admin_router(config))
        app.include_router(_moderations_router())

    async def init_state(self, engine_client: Any, state: State, args: Namespace) -> None:
        """There is none: the policies are at the engine's input processor."""


def _admin_router(config: Config) -> APIRouter:
    """`POST /guard/reload`, for the admin key, whose hash is `server.admin_hash`."""
    router = APIRouter()
    ring = admin_ring(config)
    if ring is None:
        return router

    @router.post("/guard/reload")
    async def reload_policies(request: Request) -> Response:
        try:
            authenticate(ring, request.headers, ADMINS)
            policies = await reload(request.app.state.engine_client)
        except GuardError as error:
            return error_response(error)
        return JSONReply({"generation": policies.revision.number, "policies": [*policies.entries]})

    return router


def _moderations_router() -> APIRouter:
    """`POST /v1/moderations`: the findings of the screens that requests may ask for."""
    router = APIRouter()

    @router.post("/v1/moderations")
    async def create_moderation(request: Request) -> Response:
        try:
            policies = policies_of(request.scope)
            if policies is None or policies.screens is None:
                raise UnknownRoute("No policy here screens text: add one with [[patterns]].")
            limits = policies.config.server
            body = await read_object(request, limits.max_body_bytes, limits.request_timeout_s)
            plans = policies.screens.plans
            screens = screens_of(plans, policies.entries)
            with policies.screens.screener() as screener:
                caller = caller_of(None, request.scope)
                return JSONReply(await moderate(body, screens, screener, caller))
        except GuardError as error:
            return error_response(error)

    return router
