"""What a family of models writes when it calls tools."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
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

    `marks`: what is in the chat template of such a model. `begin_call` gives what an answer that
    has to call the tool of this name begins with; for None it leaves the name to the model.
    `id_length`: the letters and digits that the template wants an id to have, None for any.
    """

    name: str
    openings: Sequence[Opening]
    begin_call: Callable[[str | None], str]
    marks: Sequence[str] = ()
    id_length: int | None = None

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


def begins_object(opening: str, arguments: str = "arguments") -> Callable[[str | None], str]:
    """The `begin_call` of a family whose calls are JSON objects behind `opening`."""

    def begin(name: str | None) -> str:
        head = f'{opening}{{"name": "'
        return head if name is None else f'{head}{name}", "{arguments}": '

    return begin


BARE = Opening("")
FENCES = (Opening("```json\n", "```"), Opening("```\n", "```"))
"""JSON as models write it who were taught no form of their own, or forget it."""
