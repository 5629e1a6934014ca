"""What answers must be where a tool has to be called, or an answer has a given form."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest

from server.services.tools import FAMILIES
from server.services.tools.offered import OfferedTools
from server.services.tools.schemas import any_of
from steering.constraint import Constraint

CITY = {
    "type": "object",
    "properties": {"place": {"$ref": "#/$defs/Place"}},
    "required": ["place"],
    "$defs": {"Place": {"type": "string", "minLength": 3}},
}
HOUR = {
    "type": "object",
    "properties": {"place": {"$ref": "#/definitions/Place"}},
    "definitions": {"Place": {"type": "integer"}},
}


def definition(name: str, schema: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": schema}}


def tools(*names: str, **options: Any) -> OfferedTools:
    definitions = (definition("weather", CITY), definition("get_time", HOUR))
    return OfferedTools(definitions, frozenset(names), **options)


def allows(constraint: Constraint | None, value: Any) -> bool:
    assert constraint is not None
    validator = jsonschema.Draft202012Validator(json.loads(constraint.text))
    return bool(validator.is_valid(value))


@pytest.mark.parametrize("family", FAMILIES.values(), ids=[*FAMILIES])
def test_one_tool_leaves_the_arguments_alone_open(family: Any) -> None:
    forced = tools("weather", choice="required")
    beginning = forced.beginning(family)
    assert beginning.endswith(f'{{"name": "weather", "{family.arguments_key}":')
    constraint = forced.constraint(family, None)
    assert allows(constraint, {"place": "Paris"}) and not allows(constraint, {"place": "P"})


@pytest.mark.parametrize("family", FAMILIES.values(), ids=[*FAMILIES])
def test_of_several_tools_one_is_called_by_its_own_schema(family: Any) -> None:
    forced = tools("weather", "get_time", choice="required")
    assert forced.beginning(family) == family.call_opening
    constraint, key = forced.constraint(family, None), family.arguments_key
    assert allows(constraint, {"name": "weather", key: {"place": "Paris"}})
    assert allows(constraint, {"name": "get_time", key: {"place": 3}})
    assert not allows(constraint, {"name": "weather", key: {"place": 3}})
    assert not allows(constraint, {"name": "other", key: {}})
    assert not allows(constraint, {"name": "get_time"})


def test_free_calls_have_no_constraint_unless_the_answer_has_one() -> None:
    family, free = FAMILIES["hermes"], tools("weather")
    assert free.constraint(family, None) is None
    both = free.constraint(family, Constraint.json_schema({"required": ["x"]}))
    assert allows(both, {"x": 1}) and allows(
        both, {"name": "weather", "arguments": {"place": "Paris"}}
    )
    assert not allows(both, {"name": "weather", "arguments": {}})
    pattern = Constraint.regex("a+")
    assert free.constraint(family, pattern) == pattern


def test_a_property_may_be_called_as_a_keyword() -> None:
    schema = {"properties": {"definitions": {"type": "string"}, "$ref": {"type": "integer"}}}
    assert any_of([schema])["anyOf"] == [schema]
