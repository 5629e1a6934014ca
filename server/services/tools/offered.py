"""The tools that one request offers to a model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from server.errors import InvalidParameter
from server.services.tools.family import ToolFamily
from server.services.tools.schemas import any_of, reference
from steering.constraint import Constraint, ConstraintError


@dataclass(frozen=True, slots=True)
class OfferedTools:
    """The tools that a request offers.

    `definitions` are those of OpenAI's chats (`{"type": "function", "function": {...}}`), `names`
    the tools that may be called. With the choice `required` an answer is a call, of the one tool
    where `names` has one. `parallel` False leaves out what is behind the first call.
    `parameters_at`: where a tool of the request has the schema of its arguments, for errors.
    """

    definitions: tuple[Mapping[str, Any], ...]
    names: frozenset[str]
    choice: Literal["auto", "required"] = "auto"
    parallel: bool = True
    parameters_at: str = field(default="function.parameters", compare=False)

    def beginning(self, family: ToolFamily) -> str:
        """What an answer begins with, whatever the model: nothing, unless it has to call a tool."""
        if self.choice == "auto":
            return ""
        if len(self.names) == 1:
            return family.begin_call(next(iter(self.names)))
        return family.call_opening

    def constraint(self, family: ToolFamily, answer: Constraint | None) -> Constraint | None:
        """What follows the beginning of an answer: a call that has to be made, by the schema of
        its tool; where calls are free, an answer of the form that is asked for, or a call.

        Raises InvalidParameter for schemas that no constraint can be made of.
        """
        if self.choice == "auto" and answer is None:
            return None
        param = "tool_choice" if self.choice == "required" else "tools"
        schemas = self._schemas()
        parts = [self._of_arguments(*item) for item in schemas.items()]
        if self.choice == "required" and len(parts) == 1:
            return replace(parts[0], param=param, owner="", parts=tuple(parts))
        roots: dict[str, Any] = {str(n): schema for n, schema in enumerate(schemas.values())}
        forms = [_call_schema(family, name, reference(str(n))) for n, name in enumerate(schemas)]
        if self.choice == "auto" and answer is not None:
            if answer.kind != "json_schema":
                return answer
            parts.append(answer)
            forms.append(reference("answer"))
            roots["answer"] = json.loads(answer.text)
        try:
            whole = Constraint.json_schema(any_of(forms, roots), param=param)
        except ConstraintError as error:
            raise InvalidParameter(f"Invalid '{param}': {error}.", param=param) from None
        return replace(whole, parts=tuple(parts))

    def _of_arguments(self, name: str, schema: Any) -> Constraint:
        """What the arguments of one tool are. Raises InvalidParameter, which names it."""
        number = [tool["function"]["name"] for tool in self.definitions].index(name)
        param, owner = f"tools[{number}].{self.parameters_at}", f"the tool '{name}'"
        try:
            return replace(Constraint.json_schema(schema, param=param), owner=owner)
        except ConstraintError as error:
            raise InvalidParameter(f"Invalid '{param}' of {owner}: {error}.", param=param) from None

    def _schemas(self) -> dict[str, Any]:
        """The schemas of the arguments of the tools that may be called, by name."""
        functions = (tool["function"] for tool in self.definitions)
        return {
            function["name"]: {"type": "object", **function["parameters"]}
            for function in functions
            if function["name"] in self.names
        }


def _call_schema(family: ToolFamily, name: str, arguments: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {"name": {"const": name}, family.arguments_key: arguments},
        "required": ["name", family.arguments_key],
        "additionalProperties": False,
    }
