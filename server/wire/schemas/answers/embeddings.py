"""`/v1/embeddings`."""

from __future__ import annotations

from typing import Literal, NotRequired

from typing_extensions import TypedDict

from server.wire.schemas.answers.verdicts import Guard


class Embedding(TypedDict):
    """Numbers, or the base64 of little-endian float32."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingUsage(TypedDict):
    prompt_tokens: int
    total_tokens: int


class EmbeddingList(TypedDict):
    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage
    guard: NotRequired[Guard]
