"""JSON schemas of bodies and answers, by the types that read and write them."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode, JsonSchemaValue
from pydantic_core import core_schema

from server.wire.schemas.base import Part

_OUTER = ("title", "default", "description")
COMPONENT = "#/components/schemas/{model}"


class _Written(GenerateJsonSchema):
    """Schemas of what is sent: every member of a dataclass or a model is there."""

    def field_is_required(
        self,
        field: core_schema.ModelField | core_schema.DataclassField | core_schema.TypedDictField,
        total: bool,
    ) -> bool:
        if self.mode == "serialization" and field["type"] != "typed-dict-field":
            return True
        return super().field_is_required(field, total)


def schemas_of(
    read: Collection[type[Part]], written: Iterable[Any]
) -> tuple[dict[Any, JsonSchemaValue], dict[str, JsonSchemaValue]]:
    """The schema of each type, which may be a reference, and the components that they refer to.

    `read` are the types of bodies, each once, `written` those of answers.
    """
    modes: list[tuple[Any, JsonSchemaMode]] = [
        *((part, "validation") for part in read),
        *((kind, "serialization") for kind in dict.fromkeys(written)),
    ]
    adapters: list[tuple[Any, JsonSchemaMode, TypeAdapter[Any]]] = [
        (kind, mode, TypeAdapter(kind)) for kind, mode in modes
    ]
    found, document = TypeAdapter.json_schemas(
        adapters, ref_template=COMPONENT, schema_generator=_Written
    )
    components = document.get("$defs", {})
    for part in read:
        name = found[part, "validation"]["$ref"].rpartition("/")[2]
        components[name] = _as_parsed(part, components[name])
    return {kind: schema for (kind, _), schema in found.items()}, components


def _as_parsed(part: type[Part], schema: JsonSchemaValue) -> JsonSchemaValue:
    """The schema of a body as `parse_request` takes it: null means absent, and parameters without
    effect are taken with their default values."""
    required = schema.get("required", ())
    members = {
        name: member if name in required else _or_null(member)
        for name, member in schema.get("properties", {}).items()
    }
    members |= {
        name: {"enum": [*defaults, None], "description": "Taken with its default value only."}
        for name, defaults in part.no_ops.items()
    }
    return {**schema, "properties": members}


def _or_null(schema: JsonSchemaValue) -> JsonSchemaValue:
    kinds = schema.get("anyOf", ())
    if {"type": "null"} in kinds or schema.get("type") == "null":
        return schema
    outer: JsonSchemaValue = {
        name: schema[name] for name in ("title", "default", "description") if name in schema
    }
    inner = {name: value for name, value in schema.items() if name not in outer}
    return {
        "anyOf": [*(kinds if len(inner) == 1 and kinds else [inner]), {"type": "null"}],
        **outer,
    }
