"""One line of the report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "note", "missing"]


@dataclass(frozen=True)
class Finding:
    """What was found of a `subject`. A "note" is worth a look, a "missing" keeps something from
    working; both have a `remedy`."""

    subject: str
    status: Status
    found: str
    remedy: str = ""
