"""`/v1/messages` and its `/count_tokens`: the message, and the events that build it."""

from __future__ import annotations

from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict

from server.wire.schemas.answers.verdicts import Guard

StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "refusal", "tool_use"]


class TextContent(TypedDict):
    type: Literal["text"]
    text: str


class ToolUse(TypedDict):
    """The call of a tool."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


class MessageUsage(TypedDict):
    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int


class AssistantMessage(TypedDict):
    """An answer, with its verdict as `guard` once it has ended."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[TextContent | ToolUse]
    stop_reason: StopReason | None
    stop_sequence: str | None
    usage: MessageUsage
    guard: NotRequired[Guard]


class MessageStart(TypedDict):
    type: Literal["message_start"]
    message: AssistantMessage


class BlockStart(TypedDict):
    type: Literal["content_block_start"]
    index: int
    content_block: TextContent | ToolUse


class BlockTextDelta(TypedDict):
    type: Literal["text_delta"]
    text: str


class BlockInputDelta(TypedDict):
    type: Literal["input_json_delta"]
    partial_json: str


class BlockDelta(TypedDict):
    type: Literal["content_block_delta"]
    index: int
    delta: BlockTextDelta | BlockInputDelta


class BlockStop(TypedDict):
    type: Literal["content_block_stop"]
    index: int


class MessageEnd(TypedDict):
    stop_reason: StopReason
    stop_sequence: str | None


class MessageDelta(TypedDict):
    type: Literal["message_delta"]
    delta: MessageEnd
    usage: MessageUsage
    guard: NotRequired[Guard]


class MessageStop(TypedDict):
    type: Literal["message_stop"]


MessageEvents = MessageStart | BlockStart | BlockDelta | BlockStop | MessageDelta | MessageStop


class TokenCount(TypedDict):
    """The number of tokens, with the verdict of the screens that have read the prompt."""

    input_tokens: int
    guard: NotRequired[Guard]
