"""Several JSON schemas as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_LITERAL = frozenset({"const", "default", "enum", "examples"})
"""Keywords whose values are no schemas."""
_BY_NAME = frozenset(
    {"$defs", "definitions", "dependencies", "dependentSchemas", "patternProperties", "properties"}
)
"""Keywords whose values have schemas by names, which are no keywords."""


def reference(name: str) -> dict[str, Any]:
    """A schema that allows what the one of that name in `any_of` does."""
    return {"$ref": f"#/$defs/{name}"}


def any_of(options: Sequence[Any], roots: Mapping[str, Any]) -> dict[str, Any]:
    """The values that one of the `options` allows, which have a `reference` to `roots` alone.

    Each of `roots` stands whole under its name, and what it refers to inside of itself (`#`,
    `#/properties/x`) is there.
    """
    definitions = {
        name: _moved(_without_id(root), f"#/$defs/{name}") for name, root in roots.items()
    }
    return {"anyOf": [*options], "$defs": definitions}


def _without_id(root: Any) -> Any:
    # with one it would be a document of its own
    return {k: v for k, v in root.items() if k != "$id"} if isinstance(root, dict) else root


def _moved(part: Any, to: str) -> Any:
    """A schema, or a list of them, whose root stands at `to` now."""
    if isinstance(part, list):
        return [_moved(item, to) for item in part]
    if not isinstance(part, dict) or "$id" in part:
        return part
    moved: dict[str, Any] = {}
    for key, value in part.items():
        if key == "$ref" and isinstance(value, str) and (value == "#" or value.startswith("#/")):
            moved[key] = to + value[1:]
        elif key in _LITERAL:
            moved[key] = value
        elif key in _BY_NAME and isinstance(value, dict):
            moved[key] = {name: _moved(item, to) for name, item in value.items()}
        else:
            moved[key] = _moved(value, to)
    return moved
