"""What a family of models writes when it calls tools."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256


@dataclass(frozen=True, slots=True)
class Opening:
    """What stands before calls, and what ends them.

    `text` "" is the brace or the bracket of the calls themselves, at the beginning of an answer
    alone. `close` "" is the end of the last object. `named`: the name of the tool may stand before
    an object that has the arguments alone, with one of `separators` between.
    """

    text: str
    close: str = ""
    named: bool = False
    separators: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ToolFamily:
    """A family of chat templates, as far as calls of tools are concerned.

    `call_opening` stands before the object of a call, in which `arguments_key` has the arguments.
    `marks`: what is in the chat template of such a model. `id_length`: the letters and digits that
    the template wants an id to have, None for any.
    """

    name: str
    openings: Sequence[Opening]
    call_opening: str = ""
    arguments_key: str = "arguments"
    marks: Sequence[str] = ()
    id_length: int | None = None

    def begin_call(self, name: str) -> str:
        """What a call of this tool begins with, up to its arguments."""
        return f'{self.call_opening}{{"name": "{name}", "{self.arguments_key}":'

    def new_id(self) -> str:
        """An id for a call of an answer."""
        if self.id_length is not None:
            return secrets.token_hex(self.id_length)[: self.id_length]
        return f"call_{secrets.token_hex(12)}"

    def id_for_template(self, call_id: str) -> str:
        """The id of an earlier call, which another server may have made, as the template takes
        it."""
        if self.id_length is None or (
            len(call_id) == self.id_length and call_id.isascii() and call_id.isalnum()
        ):
            return call_id
        return sha256(call_id.encode()).hexdigest()[: self.id_length]


BARE = Opening("")
FENCES = (Opening("```json\n", "```"), Opening("```\n", "```"))
"""JSON as models write it who were taught no form of their own, or forget it."""
