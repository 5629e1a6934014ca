"""The OpenAPI document of an app's routes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from inspect import cleandoc
from typing import Any

from fastapi.routing import APIRoute

from server.auth import KEY_HEADERS, POLICY_HEADER
from server.error_shapes import ANTHROPIC, ANTHROPIC_VERSION, shape_of
from server.openapi.operation import EVENTS, JSON, STATUSES, Operation, Query, operation_of
from server.openapi.schemas import schemas_of
from server.wire.schemas.answers.errors import AnthropicError, OpenAIError

VERSION = "3.1.0"
_PLACEHOLDER = re.compile(r"\{(\w+)(?::path)?\}")
_TEXT = {"type": "string"}
_HEADERS = {
    "X-Request-Id": "The id of the request: the client's, where it has sent a plain one.",
    POLICY_HEADER: "The policy of the request, once it is known.",
    "X-Guard-Verdict": "The outcome of the request, once it is known.",
    "Retry-After": "After how many seconds to ask again.",
}
_POLICY = Query(
    name=POLICY_HEADER,
    place="header",
    schema=_TEXT,
    description="The policy of the request, as in the member `guard` of the body.",
)


def document_of(
    routes: Iterable[APIRoute], *, title: str, version: str, keyed: bool
) -> dict[str, Any]:
    """The document of those routes that say something of themselves.

    `keyed`: clients need an API key, also beside the routes of the administrator.
    """
    described = [(route, op) for route in routes if (op := operation_of(route)) is not None]
    bodies = list(dict.fromkeys(op.body for _, op in described if op.body is not None))
    sent = [kind for _, op in described for kind in (*op.answers.values(), *op.events)]
    schemas, components = schemas_of(bodies, dict.fromkeys([*sent, OpenAIError, AnthropicError]))
    paths: dict[str, dict[str, Any]] = {}
    for route, op in described:
        members = paths.setdefault(_PLACEHOLDER.sub(r"{\1}", route.path), {})
        for method in sorted(route.methods or ()):
            members[method.lower()] = _operation(route, op, schemas, keyed=keyed)
    return {
        "openapi": VERSION,
        "info": {"title": title, "version": version},
        "paths": paths,
        "components": {
            "schemas": dict(sorted(components.items())),
            "securitySchemes": _security_schemes(),
        },
    }


def _operation(
    route: APIRoute, op: Operation, schemas: Mapping[Any, Any], *, keyed: bool
) -> dict[str, Any]:
    summary, _, more = cleandoc(route.endpoint.__doc__ or "").partition("\n\n")
    described: dict[str, Any] = {
        "operationId": route.name,
        "summary": " ".join(summary.split()) or route.name.replace("_", " ").capitalize(),
    }
    if more:
        described["description"] = more
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {**_TEXT, "minLength": 1}}
        for name in _PLACEHOLDER.findall(route.path)
    ]
    queries = (*op.queries, *([_POLICY] if op.guarded else []))
    parameters += [
        {"name": q.name, "in": q.place, "schema": {**q.schema}, "description": q.description}
        for q in queries
    ]
    if parameters:
        described["parameters"] = parameters
    if op.body is not None:
        content = {media: {"schema": schemas[op.body]} for media in op.media}
        described["requestBody"] = {"required": True, "content": content}
    described["responses"] = _responses(route.path, op, schemas)
    if (keyed and 401 in op.errors) or op.admin:
        described["security"] = [{name: []} for name in _security_schemes()]
    return described


def _responses(path: str, op: Operation, schemas: Mapping[Any, Any]) -> dict[str, Any]:
    content: dict[str, Any] = {
        media: {"schema": schemas[kind]} for media, kind in op.answers.items()
    }
    if op.events:
        # what OpenAPI 3.1 has no word for: the data of the events, one by one
        events = [schemas[kind] for kind in op.events]
        content[EVENTS] = {
            "schema": {**_TEXT, "description": "Server-sent events; their data is JSON."},
            "x-event-schema": {"anyOf": events},
        }
    names = ["X-Request-Id", *([POLICY_HEADER, "X-Guard-Verdict"] if op.guarded else [])]
    headers = _headers(*names)
    answer = {"description": "The answer.", "headers": headers, "content": content}
    responses: dict[str, Any] = {str(status): answer for status in (op.status, *op.also)}
    error = {"content": {JSON: {"schema": _error_schema(path, schemas)}}}
    for status in sorted(op.errors):
        more = _headers("Retry-After") if status == 429 else {}
        responses[str(status)] = {
            "description": STATUSES[status],
            "headers": headers | more,
            **error,
        }
    return responses


def _headers(*names: str) -> dict[str, Any]:
    return {
        name: {
            "description": _HEADERS[name],
            "schema": _TEXT,
            "required": name == "X-Request-Id",
        }
        for name in names
    }


def _error_schema(path: str, schemas: Mapping[Any, Any]) -> dict[str, Any]:
    """The schema of the errors of a path, in each shape that clients may get there."""
    shapes = {shape_of(path) is ANTHROPIC, shape_of(path, [ANTHROPIC_VERSION]) is ANTHROPIC}
    kinds = [schemas[AnthropicError if shape else OpenAIError] for shape in sorted(shapes)]
    return kinds[0] if len(kinds) == 1 else {"anyOf": kinds}


def _security_schemes() -> dict[str, Any]:
    """The places of an API key."""
    in_header = {name: {"type": "apiKey", "in": "header", "name": name} for name in KEY_HEADERS}
    return {"bearer": {"type": "http", "scheme": "bearer"}, **in_header}
