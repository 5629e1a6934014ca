"""Our endpoint plugin in vLLM's HTTP server, also where VLLM_PLUGINS does not name it."""

from __future__ import annotations

from functools import wraps
from typing import Any

from vllm.entrypoints.launchers import app as launcher

from server.vllm.http.endpoints import GuardEndpoints


def patch() -> None:
    """Attach the plugin to each app that vLLM builds in this process."""
    original = launcher.attach_endpoint_plugins

    @wraps(original)
    def attach_endpoint_plugins(app: Any, supported_tasks: Any) -> None:
        original(app, supported_tasks)
        if not any(isinstance(plugin, GuardEndpoints) for plugin in app.state.endpoint_plugins):
            plugin = GuardEndpoints()
            plugin.attach_router(app)
            app.state.endpoint_plugins = [*app.state.endpoint_plugins, plugin]

    launcher.attach_endpoint_plugins = attach_endpoint_plugins
