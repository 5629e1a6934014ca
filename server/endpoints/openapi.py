"""Request bodies in the OpenAPI document, which FastAPI cannot know: it does not read them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from server.wire.schemas.base import Part
from server.wire.schemas.embeddings import EmbeddingsRequest
from server.wire.schemas.erasures import ErasureRequest, StateRequest
from server.wire.schemas.images import EditRequest, ImageRequest
from server.wire.schemas.messages import CountTokensRequest, MessagesRequest
from server.wire.schemas.responses import ResponsesRequest
from server.wire.schemas.text import ChatRequest, CompletionRequest

_COMPONENT = "#/components/schemas/{model}"


def body_of(schema: type[Part], media: Sequence[str] = ("application/json",)) -> dict[str, Any]:
    """The `openapi_extra` of a route whose body is a `schema`, in one of the `media` types."""
    body = {"schema": {"$ref": _COMPONENT.format(model=schema.__name__)}}
    content = dict.fromkeys(media, body)
    return {"requestBody": {"required": True, "content": content}}


def describe_bodies(app: FastAPI) -> None:
    """Add the schemas that `body_of` refers to. To be called after all routes were added."""
    bodies: tuple[type[Part], ...] = (
        *(ChatRequest, CompletionRequest, EditRequest, ImageRequest),
        *(CountTokensRequest, MessagesRequest, ResponsesRequest),
        *(EmbeddingsRequest, ErasureRequest, StateRequest),
    )
    _, components = models_json_schema(
        [(body, "validation") for body in bodies], ref_template=_COMPONENT
    )
    document = app.openapi()  # FastAPI caches and returns this dictionary
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    schemas.update(components["$defs"])
