"""Lists with objects whose signature covers their text: such an object stays as it is, or goes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class SignedItems:
    """A list with objects that are signed; those in `gone`, by their ids, are to be taken away."""

    items: list[Any]
    gone: set[int] = field(default_factory=set)

    def write_back(self) -> None:
        """Take them away."""
        if self.gone:
            self.items[:] = [item for item in self.items if id(item) not in self.gone]
