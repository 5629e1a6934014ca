"""The OpenAPI document's share of OpenAI's endpoints, whose bodies FastAPI does not read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from server.wire.image_schemas import EditRequest, ImageRequest
from server.wire.schemas import ChatRequest, CompletionRequest, ModelRequest

_COMPONENT = "#/components/schemas/{model}"


def body_of(
    schema: type[ModelRequest], media: Sequence[str] = ("application/json",)
) -> dict[str, Any]:
    """`openapi_extra` of a route that takes `schema`."""
    body = {"schema": {"$ref": _COMPONENT.format(model=schema.__name__)}}
    content = dict.fromkeys(media, body)
    return {"requestBody": {"required": True, "content": content}}


def describe_bodies(app: FastAPI) -> None:
    """Add what `body_of` refers to; call it when all routes are in place."""
    bodies: tuple[type[ModelRequest], ...] = (
        *(ChatRequest, CompletionRequest, EditRequest, ImageRequest),
    )
    _, components = models_json_schema(
        [(body, "validation") for body in bodies], ref_template=_COMPONENT
    )
    document = app.openapi()  # FastAPI hands out this very dictionary from now on
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    schemas.update(components["$defs"])
