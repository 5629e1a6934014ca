"""Where a value of a body stands, as it is walked through."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from guard.config.policy_schema import Place
from server.screening.bodies.signed_items import SignedItems


@dataclass(slots=True)
class Position:
    """Where a value stands; `opaque` is the kind of content that carriers in it hold.

    `kind` is that of its strings. `name` is the name of the nearest member above. `items` is the
    list that an object is in. `nesting` counts the strings of JSON around it.
    """

    holder: Any
    key: str | int
    place: Place
    path: str
    depth: int
    opaque: str | None = None
    kind: Literal["text", "value", "schema"] = "text"
    name: str = ""
    items: list[Any] | None = None
    signed: tuple[SignedItems, Any] | None = None
    nesting: int = 0

    @property
    def free(self) -> bool:
        """Whether the protocol has no words here."""
        return self.kind != "text"
