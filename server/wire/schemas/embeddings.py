"""Request bodies of OpenAI's `/v1/embeddings`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PlainValidator

from server.wire.schemas.base import OpenAIRequest
from server.wire.schemas.text import RawPrompt, as_prompts

MAX_INPUTS = 2048
"""Of one request, as OpenAI has it."""


class EmbeddingsRequest(OpenAIRequest):
    input: Annotated[
        tuple[RawPrompt, ...],
        PlainValidator(
            as_prompts, json_schema_input_type=str | list[str] | list[int] | list[list[int]]
        ),
    ]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, ge=1)
