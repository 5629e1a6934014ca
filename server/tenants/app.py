"""The routes that the proxy answers itself (tenants, policies, traffic) as an app of their own."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute
from starlette.types import Receive, Scope, Send

from server.edge.paths import KnownPaths
from server.errors import install_error_handlers


class AdministrationApp:
    """Answers the paths of `templates`."""

    def __init__(self, app: FastAPI, templates: Sequence[tuple[str, Sequence[str]]]) -> None:
        self._app, self.templates = app, templates
        self._paths = KnownPaths(templates)

    def answers(self, path: str) -> bool:
        """Whether a path is one of its own, whatever the method."""
        return bool(self._paths.methods(path))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)


def administration_app(routers: Sequence[APIRouter]) -> AdministrationApp:
    """The app for these routes."""
    templates = [
        (route.path, sorted(route.methods or ()))
        for router in routers
        for route in router.routes
        if isinstance(route, APIRoute)
    ]
    app = FastAPI(openapi_url=None, redirect_slashes=False)
    for router in routers:
        app.include_router(router)
    install_error_handlers(app, KnownPaths(templates))
    return AdministrationApp(app, templates)
