"""`/v1/models` and `/guard/v1/policies`: the models and policies that requests can name."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from guard.config.checks import NO_POLICY
from guard.tenants.keys import KeyRing, Principal
from server.auth import allowed_policies, default_policy, reads_all
from server.endpoints.gateway import Gateway
from server.openapi.operation import JSON, LISTING, Operation
from server.services.interface import LanguageModelInfo, ModelInfo
from server.wire.replies import JSONReply
from server.wire.schemas.answers.listings import ModelList, PolicyList, ServedModel

_MODELS = Operation(answers={JSON: ModelList}, errors=LISTING)
_MODEL = Operation(answers={JSON: ServedModel}, errors=LISTING | {404})
_POLICIES = Operation(answers={JSON: PolicyList}, errors=LISTING)


def _model(info: ModelInfo) -> dict[str, Any]:
    language = info if isinstance(info, LanguageModelInfo) else None
    sees = language is not None and language.sees
    parent = language.parent if language is not None else None
    return {
        "id": info.name,
        "object": "model",
        "created": info.created,
        "owned_by": "inference-guard",
        "input_modalities": ["text", "image"] if sees else ["text"],
        "guard": info.facts(),
        **({} if parent is None else {"parent": parent, "root": parent}),
    }


def listings_router(gateway: Gateway, admins: KeyRing | None = None) -> APIRouter:
    """The routes that list models and policies; a server with keys requires one. Who reads what
    administrators read, by a key in `admins`, is shown all policies."""
    router = APIRouter()

    def caller(request: Request) -> Principal | None:
        if reads_all(admins, request.headers):
            return None
        return gateway.authenticate(request)

    @router.get("/v1/models", openapi_extra=_MODELS.as_extra())
    async def list_models(request: Request) -> Response:
        """The served models."""
        caller(request)
        models = [_model(service.info) for service in gateway.services.values()]
        return JSONReply({"object": "list", "data": models})

    @router.get("/v1/models/{model:path}", openapi_extra=_MODEL.as_extra())
    async def retrieve_model(request: Request, model: str) -> Response:
        """One served model."""
        caller(request)
        return JSONReply(_model(gateway.service(model).info))

    @router.get("/guard/v1/policies", openapi_extra=_POLICIES.as_extra())
    async def list_policies(request: Request) -> Response:
        """The policies that the caller may name, and the default of each model."""
        key = caller(request)
        config = gateway.current()
        models: list[str | None] = [None, *gateway.services]
        allowed = {name for model in models for name in allowed_policies(config, key, model)}
        return JSONReply(
            {
                "object": "list",
                "default": default_policy(config, key),
                "defaults": {
                    model: default_policy(config, key, model) for model in gateway.services
                },
                "data": [_policy(name) for name in config.policy_names if name in allowed],
            }
        )

    def _policy(name: str) -> dict[str, Any]:
        config = gateway.current()
        policy = config.policy(name)
        shadow = [guard.name for guard in config.guards_of(name) if guard.shadow]
        return {
            "id": name,
            "object": "policy",
            "guards": list(policy.guards),
            "shadow": shadow,
            "action": policy.action,
            "on_error": policy.on_error,
            "fallback": policy.fallback,
            "debug": policy.debug,
            "models": [
                model
                for model, service in gateway.services.items()
                if name == NO_POLICY or name in service.info.policies
            ],
        }

    return router
