"""`/v1/chat/completions` and `/v1/completions`: whole answers, and chunks of streams."""

from __future__ import annotations

from typing import Literal, NotRequired

from typing_extensions import TypedDict

from server.services.interface import FinishReason
from server.wire.schemas.answers.verdicts import Guard


class Usage(TypedDict):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class AlternativeToken(TypedDict):
    """`bytes` are null for a token that is a part of a character."""

    token: str
    logprob: float
    bytes: list[int] | None


class ChosenToken(AlternativeToken):
    top_logprobs: list[AlternativeToken]


class ChatLogprobs(TypedDict):
    content: list[ChosenToken]
    refusal: None


class FunctionCall(TypedDict):
    """`arguments` are JSON as a text."""

    name: str
    arguments: str


class ChatToolCall(TypedDict):
    id: str
    type: Literal["function"]
    function: FunctionCall


class FunctionCallPart(TypedDict):
    name: NotRequired[str]
    arguments: NotRequired[str]


class ChatToolCallDelta(TypedDict):
    """A part of the call number `index`; the first one has its id and its name."""

    index: int
    id: NotRequired[str]
    type: NotRequired[Literal["function"]]
    function: FunctionCallPart


class ChatGate(TypedDict):
    """The scores of guards for one token, which `guard.debug` asks for: `position` n is the n-th
    token of the answer, 0 one of the prompt, which `token` names."""

    position: int
    scores: dict[str, float]
    token: NotRequired[str]


class ChatMessage(TypedDict):
    """`refusal` stands in place of an answer of a given form that was blocked."""

    role: Literal["assistant"]
    content: str | None
    refusal: str | None
    tool_calls: NotRequired[list[ChatToolCall]]


class ChatChoice(TypedDict):
    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason
    gates: NotRequired[list[ChatGate]]
    guard: NotRequired[Guard]


class ChatCompletion(TypedDict):
    """The answer to a chat, with the verdict on its first choice as `guard`."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    guard: NotRequired[Guard]


class ChatDelta(TypedDict):
    """What a choice has more of: at first its role, at last nothing."""

    role: NotRequired[Literal["assistant"]]
    content: NotRequired[str]
    refusal: NotRequired[str | None]
    tool_calls: NotRequired[list[ChatToolCallDelta]]


class ChatChunkChoice(TypedDict):
    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None
    gates: NotRequired[list[ChatGate]]
    guard: NotRequired[Guard]


class ChatCompletionChunk(TypedDict):
    """An event of a stream; the last one of a choice has its verdict as `guard`."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: NotRequired[Usage | None]
    guard: NotRequired[Guard]


class CompletionLogprobs(TypedDict):
    """`text_offset` counts characters from the begin of the answer."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(TypedDict):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason
    guard: NotRequired[Guard]


class Completion(TypedDict):
    """The answer to a prompt, with the verdict on its first choice as `guard`."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage
    guard: NotRequired[Guard]


class CompletionChunkChoice(TypedDict):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason | None
    guard: NotRequired[Guard]


class CompletionChunk(TypedDict):
    """An event of a stream; the last one of a choice has its verdict as `guard`."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChunkChoice]
    usage: NotRequired[Usage | None]
    guard: NotRequired[Guard]
