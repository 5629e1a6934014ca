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
_Policies = Annotated[list[str], Field(max_length=MOST_POLICIES)]
_Aliases = Annotated[list[_Called], Field(max_length=MOST_ALIASES)]
_Documents = Annotated[list[_Text], Field(max_length=MOST_DOCUMENTS)]


class ErasureRequest(Part):
    """`documents` are texts about the concept, never paths or addresses. With the suppression
    `list` that the name of a person is put on, `entry` is what verdicts call it; `policies` are
    those of the list then, and it starts in force."""

    name: _Called
    model: str
    policies: _Policies = []
    aliases: _Aliases = []
    documents: _Documents = []
    start: Literal["shadow", "in force"] | None = None
    list: str | None = None
    entry: _Called | None = None


class StateRequest(Part):
    state: Literal["shadow", "in force"]
