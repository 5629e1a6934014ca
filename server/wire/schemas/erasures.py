"""Bodies of requests about erasures."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from guard.fitting.erasure.documents import MAX_NAME
from server.wire.schemas.base import Part

MOST_DOCUMENTS, MOST_ALIASES, MOST_POLICIES = 32, 16, 64
MAX_CHARACTERS = 2**20
"""Of a document."""

_Text = Annotated[str, Field(max_length=MAX_CHARACTERS)]
_Called = Annotated[str, Field(max_length=MAX_NAME)]


class ErasureRequest(Part):
    """`documents` are texts about the concept, never paths or addresses."""

    name: _Called
    model: str
    policies: list[str] = Field(min_length=1, max_length=MOST_POLICIES)
    aliases: list[_Called] = Field(default=[], max_length=MOST_ALIASES)
    documents: list[_Text] = Field(default=[], max_length=MOST_DOCUMENTS)
    start: Literal["shadow", "in force"] = "shadow"


class StateRequest(Part):
    state: Literal["shadow", "in force"]
