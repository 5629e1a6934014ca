"""The server as a deployment of Ray Serve: `serve run server.ray:app config=config.toml`.

Each replica is a process that builds the services of the configuration and answers every route of
`guard serve`. Ray Serve starts, watches and replaces them, on one machine or on many.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ray import serve
from ray.serve import Application
from starlette.types import ASGIApp

from guard.config.schema import Config, load_config
from guard.errors import ConfigError, ServiceStopped

DEPLOYMENT = "inference-guard"


class RayArguments(BaseModel):
    """The arguments of `app`: `config` is a path that every node has, `cpus` and `gpus` are for
    each replica. A replica gets at most `requests` at the same time; further ones wait in Ray.
    After `drain_s` a replica that is to stop ends the requests that still run."""

    model_config = ConfigDict(extra="forbid")

    config: Path
    replicas: int = Field(default=1, ge=1)
    cpus: float = Field(default=1.0, ge=0)
    gpus: float = Field(default=0.0, ge=0)
    requests: int = Field(default=256, ge=1)
    drain_s: float = Field(default=30.0, ge=0)


def app(arguments: Mapping[str, Any]) -> Application:
    """The application for `serve run`, `serve build` and `serve.run`, of `RayArguments`.

    An edited configuration is another version: it replaces running replicas one by one. Raises
    ConfigError.
    """
    args = _checked(arguments)
    path = args.config.absolute()
    config = load_config(path)
    _require_replicable(config)
    deployment = serve.deployment(
        name=DEPLOYMENT,
        num_replicas=args.replicas,
        max_ongoing_requests=args.requests,
        graceful_shutdown_timeout_s=args.drain_s,
        health_check_period_s=5,
        ray_actor_options={"num_cpus": args.cpus, "num_gpus": args.gpus},
    )
    version = hashlib.sha256(path.read_bytes()).hexdigest()
    return deployment(serve.ingress()(GuardReplica)).bind(str(path), version)


class GuardReplica:
    """One replica; Ray Serve makes it, calls the methods below, and sends requests to its app."""

    def __init__(self, path: str, version: str) -> None:
        """`version` tells configurations at the same path apart. Raises GuardError."""
        # imported here: the process that deploys needs no torch
        from server.lifecycle.opening import opened_app

        self._stack = ExitStack()
        self._opened = self._stack.enter_context(opened_app(load_config(path)))

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return self._opened.app

    async def check_health(self) -> None:
        """Ray Serve replaces a replica whose check fails."""
        for name, service in self._opened.services.items():
            if not service.ready():
                raise ServiceStopped(f"the model {name!r} takes no requests")

    async def __del__(self) -> None:
        """Close what is open; the app's lifespan is over."""
        await asyncio.to_thread(self._stack.close)


def _checked(arguments: Mapping[str, Any]) -> RayArguments:
    try:
        return RayArguments.model_validate(arguments)
    except ValidationError as error:
        raise ConfigError(
            [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()]
        ) from None


def _require_replicable(config: Config) -> None:
    """Raises ConfigError for what one server alone can have, and where there is no model."""
    if not config.models:
        raise ConfigError(["there is no model to serve: add [[models]]"])
    if config.erasures.folder is not None:
        raise ConfigError(
            ["erasures: are made by one server, which replicas would not hear of: leave them out"]
        )
