"""The request body of `/v1/moderations`."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import MaxLen, MinLen
from pydantic import ConfigDict

from server.wire.schemas.base import Part

MAX_TEXTS = 128


class ModeratedText(Part):
    """A part of one input."""

    model_config = ConfigDict(extra="ignore")

    type: Literal["text"]
    text: str


class ModerationRequest(Part):
    """What is read of a body; other members, such as `model`, are without effect here."""

    model_config = ConfigDict(extra="ignore")

    input: (
        str
        | Annotated[list[str], MinLen(1), MaxLen(MAX_TEXTS)]
        | Annotated[list[ModeratedText], MinLen(1), MaxLen(MAX_TEXTS)]
    )
