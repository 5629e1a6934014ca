"""The tools that a request offers, as all chat APIs bring them: definitions and the choice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, StringConstraints
from pydantic_core import PydanticCustomError

from server.errors import InvalidParameter
from server.services.tools.offered import OfferedTools
from server.wire.schemas.base import UNSUPPORTED, Part

MAX_TOOLS = 512

ToolName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.:/-]{1,128}$")]
"""What all APIs take, and names as servers of tools have them."""


class Function(Part):
    """A tool of OpenAI's APIs. `strict` asks for arguments that follow the schema."""

    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    def definition(self) -> dict[str, Any]:
        return definition(self.name, self.description, self.parameters)


class ModeChoice(Part):
    """No tool, any, or at least one of them."""

    type: Literal["none", "auto", "required"]


def as_mode(choice: Any) -> Any:
    """A choice that is a word, as an object."""
    return {"type": choice} if isinstance(choice, str) else choice


def functions_alone(kind: str) -> BeforeValidator:
    """Refuses tools that the provider of an API runs itself; ours are of the type `kind`, which
    Anthropic's clients leave out."""

    def check(tool: Any) -> Any:
        found = tool.get("type") if isinstance(tool, dict) else None
        if isinstance(found, str) and found != kind:
            raise PydanticCustomError(
                UNSUPPORTED,
                "tools of the type '{found}' run at the provider of the API, and this server runs "
                "none: offer tools of the type '{kind}', which the client runs",
                {"found": found[:80], "kind": kind},
            )
        return tool

    return BeforeValidator(check)


def definition(name: str, description: str | None, parameters: Any) -> dict[str, Any]:
    """A tool as chat templates take it: in the form of OpenAI's chats."""
    function: dict[str, Any] = {"name": name}
    if description is not None:
        function["description"] = description
    function["parameters"] = parameters or {"type": "object", "properties": {}}
    return {"type": "function", "function": function}


def offered(
    definitions: Sequence[dict[str, Any]],
    mode: Literal["none", "auto", "required"],
    *,
    only: Sequence[str] | None = None,
    parallel: bool = True,
) -> OfferedTools | None:
    """The tools of a request; None where it offers none, or none may be called.

    `only`: the tools that may be called, None for all. Raises InvalidParameter for a choice that
    the tools do not have, and for two tools of one name.
    """
    names = [tool["function"]["name"] for tool in definitions]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InvalidParameter(f"Two of the 'tools' have the name '{twice}'.", param="tools")
    if missing := [name for name in only or () if name not in names]:
        raise InvalidParameter(
            f"'tool_choice' names '{missing[0]}', which is none of the 'tools'.",
            param="tool_choice",
        )
    if mode == "none" or not names or (only is not None and not only):
        if mode == "required":
            raise InvalidParameter(
                "'tool_choice' asks for a call, and there are no 'tools'.", param="tool_choice"
            )
        return None
    callable_names = frozenset(names if only is None else only)
    return OfferedTools(tuple(definitions), callable_names, mode, parallel)
