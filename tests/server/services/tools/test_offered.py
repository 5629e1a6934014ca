"""What answers must be where a tool has to be called, or an answer has a given form."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from llguidance import LLMatcher

from server.errors import InvalidParameter
from server.services.tools import FAMILIES
from server.services.tools.offered import OfferedTools
from server.services.tools.schemas import any_of, reference
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


def test_references_stay_inside_of_the_schema_that_has_them() -> None:
    tree = {
        "$id": "https://example.com/tree",
        "type": "object",
        "properties": {
            "v": {"type": "integer"},
            "w": {"$ref": "#/properties/v"},
            "next": {"$ref": "#"},
            "kept": {"const": {"$ref": "#"}},
        },
        "additionalProperties": False,
    }
    offered = OfferedTools((definition("grow", tree),), frozenset({"grow"}))
    both = offered.constraint(FAMILIES["hermes"], Constraint.json_schema(tree))

    def call(arguments: Any) -> dict[str, Any]:
        return {"name": "grow", "arguments": arguments}

    for value in ({"v": 1, "w": 2, "next": {"next": {"w": 3}}}, {"kept": {"$ref": "#"}}):
        assert allows(both, value) and allows(both, call(value))
    for value in ({"w": "x"}, {"next": {"w": "x"}}, {"next": 3}, {"next": call({})}):
        assert not allows(both, value) and not allows(both, call(value))
    assert both is not None
    grammar = LLMatcher.grammar_from_json_schema(both.text)
    assert LLMatcher.validate_grammar(grammar) == ""


def test_a_property_may_be_called_as_a_keyword() -> None:
    schema = {
        "properties": {
            "definitions": {"type": "string"},
            "$ref": {"type": "integer"},
            "enum": {"$ref": "#/properties/definitions"},
        }
    }
    whole = any_of([reference("0")], {"0": schema})
    validator = jsonschema.Draft202012Validator(whole)
    assert validator.is_valid({"definitions": "a", "$ref": 1, "enum": "b"})
    for wrong in ({"definitions": 1}, {"$ref": "a"}, {"enum": 1}):
        assert not validator.is_valid(wrong)


@pytest.mark.parametrize("choice", ["auto", "required"])
def test_a_schema_that_is_too_large_is_that_of_its_tool(choice: Any) -> None:
    large = definition("large", {"enum": ["x" * 70_000]})
    names = frozenset({"weather", "large"})
    offered = OfferedTools((definition("weather", CITY), large), names, choice)
    with pytest.raises(InvalidParameter, match="of the tool 'large'") as caught:
        offered.constraint(FAMILIES["hermes"], Constraint.json_schema({}))
    assert caught.value.param == "tools[1].function.parameters"
