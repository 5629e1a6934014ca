"""Models, policies and suppression lists; health and readiness."""

from __future__ import annotations

from typing import Literal, NotRequired

from typing_extensions import TypedDict

from server.services.interface import Capability


class LanguageModelFacts(TypedDict):
    """`tools` is the family whose calls of tools are read; null: the model knows none."""

    engine: str
    capabilities: list[Capability]
    embedding_width: NotRequired[int]
    max_context: int
    tools: str | None


class EncoderFacts(TypedDict):
    engine: str
    capabilities: list[Capability]
    embedding_width: int
    max_context: int


class EmbeddingFacts(TypedDict):
    """Vectors that requests may bring: how wide they are, and how long."""

    width: int
    largest_norm: float


class ImageModelFacts(TypedDict):
    engine: str
    capabilities: list[Capability]
    size: str
    num_inference_steps: int
    guidance_scale: float
    max_steps: int
    embeddings: EmbeddingFacts | None


class ServedModel(TypedDict):
    """`parent` and `root`: the model of which this one is a LoRA adapter."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: Literal["inference-guard"]
    input_modalities: list[Literal["text", "image"]]
    guard: LanguageModelFacts | EncoderFacts | ImageModelFacts
    parent: NotRequired[str]
    root: NotRequired[str]


class ModelList(TypedDict):
    object: Literal["list"]
    data: list[ServedModel]


class ServedPolicy(TypedDict):
    """`models` are those that requests may name with it; `shadow` are guards that only observe;
    `debug`: requests may ask where guards act."""

    id: str
    object: Literal["policy"]
    guards: list[str]
    shadow: list[str]
    action: str
    on_error: Literal["closed", "open"]
    fallback: str
    debug: bool
    models: list[str]


class PolicyList(TypedDict):
    """The policies that the caller may name; `defaults` are those of requests to each model that
    name none."""

    object: Literal["list"]
    default: str
    defaults: dict[str, str]
    data: list[ServedPolicy]


class ReloadedLists(TypedDict):
    """How many names each suppression list has now, by model and list."""

    object: Literal["lists"]
    models: dict[str, dict[str, int]]


class Health(TypedDict):
    status: Literal["ok"]


class ModelReadiness(TypedDict):
    """`queued` are rows that wait for a place in the batch."""

    ready: bool
    queued: int


class Readiness(TypedDict):
    status: Literal["ready", "unavailable"]
    models: dict[str, ModelReadiness]
