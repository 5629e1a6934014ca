"""An OpenAPI document as one page without scripts: a browser loads nothing else for it."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from server.openapi.style import STYLE

_DIGEST = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
POLICY = f"default-src 'none'; style-src 'sha256-{_DIGEST}'; base-uri 'none'; form-action 'none'"
"""The page's Content-Security-Policy: its own style sheet, and nothing else."""

_REFERENCE = "#/components/schemas/"
_LIMITS = ("minLength", "maxLength", "minItems", "maxItems", "pattern")
_BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def page_of(document: Mapping[str, Any]) -> str:
    """The page: each route with its parameters, bodies and responses, then the schemas."""
    info = document["info"]
    title = f"{escape(info['title'])} {escape(info['version'])}"
    return "".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{title}</title><style>{STYLE}</style></head><body>",
            f'<header><h1>{title}</h1><p>As a document: <a href="openapi.json">openapi.json</a>',
            "</p></header><main>",
            *_routes(document["paths"]),
            "<h2>Schemas</h2>",
            *_schemas(document["components"]["schemas"]),
            "</main></body></html>",
        ]
    )


def _routes(paths: Mapping[str, Any]) -> Iterator[str]:
    for path, members in paths.items():
        for method, operation in members.items():
            yield f'<details id="{escape(operation["operationId"])}"><summary>'
            yield f'<b class="{method}">{method.upper()}</b> <code>{escape(path)}</code> '
            yield f"<span>{_words(operation['summary'])}</span></summary>"
            yield f"<p>{_words(operation.get('description', ''))}</p>"
            if "security" in operation:
                yield "<p>Needs an API key.</p>"
            yield from _parameters(operation.get("parameters", ()))
            if body := operation.get("requestBody"):
                yield "<h4>Body</h4>" + _contents(body["content"])
            yield "<h4>Responses</h4><table>"
            for status, response in operation["responses"].items():
                yield f"<tr><td><b>{escape(status)}</b></td><td>{_words(response['description'])}"
                yield f"{_contents(response.get('content', {}))}</td></tr>"
            yield "</table></details>"


def _parameters(parameters: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if not parameters:
        return
    yield "<h4>Parameters</h4><table>"
    for each in parameters:
        yield f"<tr><td><code>{escape(each['name'])}</code> in {each['in']}</td>"
        yield f"<td>{_kind(each['schema'])}</td><td>{_words(each.get('description', ''))}</td></tr>"
    yield "</table>"


def _contents(content: Mapping[str, Any]) -> str:
    """Each media type, and what it holds."""
    return "".join(
        f"<p><code>{escape(media)}</code>: "
        f"{_kind(held['x-event-schema' if 'x-event-schema' in held else 'schema'])}</p>"
        for media, held in content.items()
    )


def _schemas(schemas: Mapping[str, Any]) -> Iterator[str]:
    for name, schema in schemas.items():
        yield f'<section id="{escape(name)}"><h3>{escape(name)}</h3>'
        yield f"<p>{_words(schema.get('description', ''))}</p>"
        members = schema.get("properties")
        if members is None:
            yield f"<p>{_kind(schema)}</p></section>"
            continue
        yield "<table>"
        required = schema.get("required", ())
        for member, kind in members.items():
            must = " <em>required</em>" if member in required else ""
            yield f"<tr><td><code>{escape(member)}</code>{must}</td><td>{_kind(kind)}</td>"
            yield f"<td>{_words(kind.get('description', ''))}</td></tr>"
        yield "</table></section>"


def _kind(schema: Mapping[str, Any]) -> str:
    """What values a schema takes, in a line; other schemas are links."""
    if "$ref" in schema:
        name = escape(schema["$ref"].removeprefix(_REFERENCE))
        return f'<a href="#{name}">{name}</a>'
    for word in ("anyOf", "oneOf", "allOf"):
        if word in schema:
            kinds = [_kind(each) for each in schema[word]]
            return _with_default((" and " if word == "allOf" else " or ").join(kinds), schema)
    if "const" in schema:
        return _value(schema["const"])
    if "enum" in schema:
        return _with_default(" or ".join(map(_value, schema["enum"])), schema)
    kind = schema.get("type", "any value")
    words = " or ".join(kind) if isinstance(kind, list) else str(kind)
    if kind == "array":
        words = "list of " + _kind(schema.get("items", {}))
    elif kind == "object" and isinstance(schema.get("additionalProperties"), dict):
        words = "object of " + _kind(schema["additionalProperties"])
    bounds = [f"{sign} {schema[name]}" for name, sign in _BOUNDS.items() if name in schema]
    bounds += [f"{name} {schema[name]}" for name in _LIMITS if name in schema]
    return _with_default(words + "".join(f", {escape(bound)}" for bound in bounds), schema)


def _with_default(words: str, schema: Mapping[str, Any]) -> str:
    default = schema.get("default")
    return words if default is None else f"{words}; {_value(default)} if left out"


def _value(value: Any) -> str:
    return f"<code>{escape(json.dumps(value, ensure_ascii=False))}</code>"


def _words(text: str) -> str:
    """Prose, of which what stands between backquotes is code."""
    parts = escape(" ".join(text.split())).split("`")
    return "".join(f"<code>{part}</code>" if i % 2 else part for i, part in enumerate(parts))
