"""The tools that one request offers to a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from server.services.tools.family import ToolFamily


@dataclass(frozen=True, slots=True)
class OfferedTools:
    """The tools that a request offers.

    `definitions` are those of OpenAI's chats (`{"type": "function", "function": {...}}`), `names`
    the tools that may be called. With the choice `required` an answer is a call, of the one tool
    where `names` has one. `parallel` False ends an answer behind its first call.
    """

    definitions: tuple[Mapping[str, Any], ...]
    names: frozenset[str]
    choice: Literal["auto", "required"] = "auto"
    parallel: bool = True

    def beginning(self, family: ToolFamily) -> str:
        """What an answer begins with, whatever the model: nothing, unless it has to call a tool."""
        if self.choice == "auto":
            return ""
        name = next(iter(self.names)) if len(self.names) == 1 else None
        return family.begin_call(name)
