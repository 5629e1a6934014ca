"""Several JSON schemas as one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

_DEFINITIONS = ("$defs", "definitions")
_REFERENCE = re.compile(r"#/(\$defs|definitions)/([^/]+)(.*)", re.DOTALL)


def any_of(schemas: Sequence[Any]) -> dict[str, Any]:
    """The values that one of the schemas allows.

    What a schema defines at its root, or in a part of it that is a schema's root (the arguments of
    a tool), moves to the root of the whole under a name of its own, and references to it follow.
    """
    definitions: dict[str, Any] = {}
    options = [_moved(schema, f"{number}.", definitions) for number, schema in enumerate(schemas)]
    return {"anyOf": options} | ({"$defs": definitions} if definitions else {})


def _moved(part: Any, prefix: str, definitions: dict[str, Any]) -> Any:
    if isinstance(part, list):
        return [_moved(item, prefix, definitions) for item in part]
    if not isinstance(part, dict):
        return part
    moved: dict[str, Any] = {}
    for key, value in part.items():
        if key in _DEFINITIONS and isinstance(value, dict) and not _names_a_property(part):
            for name, definition in value.items():
                definitions[prefix + name] = _moved(definition, prefix, definitions)
        elif key == "$ref" and isinstance(value, str) and (found := _REFERENCE.fullmatch(value)):
            moved[key] = f"#/$defs/{prefix}{found[2]}{found[3]}"
        else:
            moved[key] = _moved(value, prefix, definitions)
    return moved


def _names_a_property(part: dict[str, Any]) -> bool:
    """Whether these are the properties of an object, one of which is called as a keyword."""
    return all(isinstance(value, dict) and "type" in value for value in part.values())
