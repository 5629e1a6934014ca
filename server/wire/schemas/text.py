"""Request bodies of OpenAI's `/v1/chat/completions` and `/v1/completions`."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal, Self

from annotated_types import MaxLen, MinLen
from pydantic import BeforeValidator, Field, PlainValidator, model_validator

from server.errors import InvalidParameter
from server.services.interface import SamplingOptions
from server.services.tools.offered import OfferedTools
from server.wire.schemas.base import DebugGuardOptions, OpenAIRequest, Part, RowSettings
from server.wire.schemas.chat_messages import ChatTool, Message, ToolChoice, offered_tools
from server.wire.schemas.conversation import Turn
from server.wire.schemas.structured import StructuredFields
from server.wire.schemas.tools import MAX_TOOLS

RawPrompt = str | tuple[int, ...]
"""A text, or token ids."""
_TOKEN_ID_LIMIT = 2**31

MAX_MESSAGES = 10_000

MAX_STOP = 512
"""Characters of a stop string: each new token is compared with every beginning of it."""
MAX_BIASES = 1024
MAX_MIN_TOKENS = 2**20
MAX_STOP_TOKENS = 128


class StreamOptions(Part):
    include_usage: bool = False
    include_obfuscation: Literal[False] = False


_StopString = Annotated[str, MinLen(1), MaxLen(MAX_STOP)]


def _as_list(stop: Any) -> Any:
    return [stop] if isinstance(stop, str) else stop


_TokenId = Annotated[int, Field(ge=0, lt=_TOKEN_ID_LIMIT)]
_Penalty = Annotated[float, Field(ge=-2, le=2)]
_Biases = dict[
    Annotated[str, Field(pattern=r"^[0-9]{1,9}$")], Annotated[float, Field(ge=-100, le=100)]
]


class SamplingFields(Part):
    """The fields that change how tokens are chosen; those that OpenAI does not have are vLLM's."""

    top_k: int = Field(0, ge=-1, lt=_TOKEN_ID_LIMIT)
    min_p: float = Field(0.0, ge=0, le=1)
    frequency_penalty: _Penalty = 0.0
    presence_penalty: _Penalty = 0.0
    repetition_penalty: float = Field(1.0, ge=0.01, le=100)
    logit_bias: Annotated[_Biases, MaxLen(MAX_BIASES)] = {}
    min_tokens: int = Field(0, ge=0, le=MAX_MIN_TOKENS)
    stop_token_ids: Annotated[list[_TokenId], MaxLen(MAX_STOP_TOKENS)] = []
    ignore_eos: bool = False

    def sampling_options(self) -> SamplingOptions:
        return SamplingOptions(
            top_k=max(0, self.top_k),  # -1 is vLLM's name for all
            min_p=self.min_p,
            frequency_penalty=self.frequency_penalty,
            presence_penalty=self.presence_penalty,
            repetition_penalty=self.repetition_penalty,
            logit_bias=tuple((int(token), bias) for token, bias in self.logit_bias.items()),
            min_tokens=self.min_tokens,
            stop_token_ids=tuple(self.stop_token_ids),
            ignore_eos=self.ignore_eos,
        )


class TextRequest(SamplingFields, StructuredFields, OpenAIRequest):
    """The fields that chat and plain completions share."""

    max_tokens: int | None = Field(None, ge=1)
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: Annotated[
        list[_StopString],
        BeforeValidator(_as_list, json_schema_input_type=_StopString | list[_StopString]),
        MaxLen(4),
    ] = []
    n: int = Field(1, ge=1, le=16)
    stream: bool = False
    stream_options: StreamOptions | None = None

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    def row_settings(self) -> RowSettings:
        """How the rows of the request are sampled."""
        return RowSettings(
            temperature=self.temperature,
            top_p=self.top_p,
            seed=self.seed,
            stop=tuple(self.stop),
            n=self.n,
            max_tokens=self.max_tokens,
            options=self.sampling_options(),
            constraint=self.constraint,
        )

    @model_validator(mode="after")
    def _stream_options_need_a_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise InvalidParameter(
                "'stream_options' is only allowed when 'stream' is true.", param="stream_options"
            )
        return self


class ChatRequest(TextRequest):
    no_ops: ClassVar[dict[str, tuple[Any, ...]]] = {
        "audio": (),
        "function_call": ("none",),
        "functions": ([],),
        "modalities": (["text"],),
        "moderation": (),
        "web_search_options": (),
    }

    guard: DebugGuardOptions | None = None
    messages: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=20)
    tools: list[ChatTool] = Field([], max_length=MAX_TOOLS)
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool = True
    metadata: dict[str, str] | None = None
    safety_identifier: str | None = None

    # Accepted and without effect: hints, and what is only for a hosted service.
    prediction: dict[str, Any] | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    prompt_cache_retention: str | None = None
    reasoning_effort: str | None = None
    service_tier: str | None = None
    store: bool | None = None
    verbosity: str | None = None

    conversation_at: ClassVar[str] = "messages"

    def turns(self) -> list[Turn]:
        """The conversation. Raises InvalidParameter."""
        return [message.turn(f"messages[{i}]") for i, message in enumerate(self.messages)]

    def offered_tools(self) -> OfferedTools | None:
        """The tools that answers may call. Raises InvalidParameter."""
        return offered_tools(self.tools, self.tool_choice, parallel=self.parallel_tool_calls)

    def row_settings(self) -> RowSettings:
        return replace(
            super().row_settings(),
            max_tokens=self.max_completion_tokens or self.max_tokens,
            top_logprobs=(self.top_logprobs or 0) if self.logprobs else None,
            debug=self.guard is not None and self.guard.debug,
        )

    @model_validator(mode="after")
    def _parameters_agree(self) -> Self:
        if self.guard is not None and self.guard.debug and self.tools:
            raise InvalidParameter(
                "'guard.debug' does not go with 'tools', whose calls stand in place of tokens; "
                "leave one of them out.",
                param="guard.debug",
            )
        if self.top_logprobs is not None and not self.logprobs:
            raise InvalidParameter(
                "'top_logprobs' is only allowed when 'logprobs' is true.", param="top_logprobs"
            )
        if None not in (self.max_tokens, self.max_completion_tokens) and (
            self.max_tokens != self.max_completion_tokens
        ):
            raise InvalidParameter(
                "'max_tokens' and 'max_completion_tokens' differ; give one of them.",
                param="max_tokens",
            )
        return self


_Text = Annotated[str, MinLen(1)]
_TokenIds = Annotated[list[Annotated[int, Field(ge=0, lt=_TOKEN_ID_LIMIT)]], MinLen(1)]


def as_prompts(prompt: Any) -> tuple[RawPrompt, ...]:
    """A tuple of prompts from one prompt or a list of them, each a text or token ids."""
    if isinstance(prompt, str):
        return (prompt,)
    if isinstance(prompt, list) and prompt:
        if all(isinstance(item, str) for item in prompt):
            return tuple(prompt)
        if _is_token_ids(prompt):
            return (tuple(prompt),)
        if all(isinstance(item, list) and item and _is_token_ids(item) for item in prompt):
            return tuple(tuple(item) for item in prompt)
    raise ValueError("give a string, a list of strings, token ids, or a list of token id lists")


def _is_token_ids(ids: list[Any]) -> bool:
    return all(type(token) is int and 0 <= token < _TOKEN_ID_LIMIT for token in ids)


class CompletionRequest(TextRequest):
    no_ops: ClassVar[dict[str, tuple[Any, ...]]] = {
        "best_of": (1,),
        "echo": (False,),
        "suffix": (),
    }

    prompt: Annotated[
        tuple[RawPrompt, ...],
        PlainValidator(
            as_prompts,
            json_schema_input_type=_Text
            | Annotated[list[_Text], MinLen(1)]
            | _TokenIds
            | Annotated[list[_TokenIds], MinLen(1)],
        ),
    ]
    logprobs: int | None = Field(None, ge=0, le=5)

    def row_settings(self) -> RowSettings:
        return replace(super().row_settings(), top_logprobs=self.logprobs)
