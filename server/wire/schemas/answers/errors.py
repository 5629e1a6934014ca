"""Errors, in the shape of each API."""

from __future__ import annotations

from typing import Literal, NotRequired

from typing_extensions import TypedDict

from server.wire.schemas.answers.verdicts import Guard


class OpenAIErrorFields(TypedDict):
    """`param` is the place in the body that has to change, `code` names the error for programs."""

    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIError(TypedDict):
    """An error as OpenAI's API has it; `guard` is the verdict where a guard is the reason."""

    error: OpenAIErrorFields
    guard: NotRequired[Guard]


class AnthropicErrorFields(TypedDict):
    type: str
    message: str
    code: NotRequired[str]
    param: NotRequired[str]


class AnthropicError(TypedDict):
    """An error as Anthropic's API has it; `guard` is the verdict where a guard is the reason."""

    type: Literal["error"]
    error: AnthropicErrorFields
    request_id: str
    guard: NotRequired[Guard]
