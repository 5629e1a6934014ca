"""Request bodies of OpenAI's text endpoints: each parameter is honoured or refused by name.

The bodies of the image endpoints are in `image_schemas`.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from annotated_types import MaxLen, MinLen
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    model_validator,
)

from server.errors import (
    InvalidParameter,
    MissingParameter,
    UnknownParameter,
    UnsupportedParameter,
)

RawPrompt = str | tuple[int, ...]
"""A text, or token ids."""
S = TypeVar("S", bound="ModelRequest")

_TOKEN_ID_LIMIT = 2**31

MAX_MESSAGES = 10_000

MAX_STOP = 512
"""Characters of a stop string: each new token is compared with every beginning of it."""


class Part(BaseModel):
    """Base of bodies and their parts: no coercion, no unknown names, no NaN."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class TextPart(Part):
    type: Literal["text"]
    text: str


def _as_parts(content: Any) -> Any:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


class Message(Part):
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        list[TextPart],
        BeforeValidator(_as_parts, json_schema_input_type=str | list[TextPart]),
        MinLen(1),
    ]

    @model_validator(mode="before")
    @classmethod
    def _drop_absent(cls, message: Any) -> Any:
        """Drop empty optional fields: clients send answers back with all of them."""
        if not isinstance(message, dict):
            return message
        optional = {"name", "refusal", "annotations", "audio", "function_call", "tool_calls"}
        return {k: v for k, v in message.items() if k not in optional or v not in (None, [])}

    def as_template(self) -> dict[str, str]:
        """The message in the form of chat templates; `developer` is OpenAI's newer `system`."""
        role = "system" if self.role == "developer" else self.role
        return {"role": role, "content": "\n".join(part.text for part in self.content)}


class StreamOptions(Part):
    include_usage: bool = False
    include_obfuscation: Literal[False] = False


class GuardOptions(Part):
    policy: str


def _as_list(stop: Any) -> Any:
    return [stop] if isinstance(stop, str) else stop


class ModelRequest(Part):
    """The fields of every request to a model."""

    no_ops: ClassVar[dict[str, tuple[Any, ...]]] = {}
    """Parameters of OpenAI's schema that are accepted with these default values only."""

    model: str
    user: str | None = None
    guard: GuardOptions | None = None


class TextRequest(ModelRequest):
    """The fields that chat and plain completions share."""

    no_ops: ClassVar[dict[str, tuple[Any, ...]]] = {
        "frequency_penalty": (0,),
        "logit_bias": ({},),
        "presence_penalty": (0,),
    }

    max_tokens: int | None = Field(None, ge=1)
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: Annotated[
        list[Annotated[str, MinLen(1), MaxLen(MAX_STOP)]],
        BeforeValidator(_as_list, json_schema_input_type=str | list[str]),
        MaxLen(4),
    ] = []
    n: int = Field(1, ge=1, le=16)
    stream: bool = False
    stream_options: StreamOptions | None = None

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    @model_validator(mode="after")
    def _stream_options_need_a_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise InvalidParameter(
                "'stream_options' is only allowed when 'stream' is true.", param="stream_options"
            )
        return self


class ChatRequest(TextRequest):
    no_ops: ClassVar[dict[str, tuple[Any, ...]]] = TextRequest.no_ops | {
        "audio": (),
        "function_call": ("none",),
        "functions": ([],),
        "modalities": (["text"],),
        "moderation": (),
        "parallel_tool_calls": (True,),
        "prediction": (),
        "prompt_cache_key": (),
        "prompt_cache_options": (),
        "prompt_cache_retention": (),
        "reasoning_effort": (),
        "response_format": ({"type": "text"},),
        "service_tier": ("auto", "default"),
        "store": (False,),
        "tool_choice": ("none", "auto"),
        "tools": ([],),
        "verbosity": ("medium",),
        "web_search_options": (),
    }

    messages: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=20)
    metadata: dict[str, str] | None = None
    safety_identifier: str | None = None

    @model_validator(mode="after")
    def _parameters_agree(self) -> Self:
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


def _as_prompts(prompt: Any) -> tuple[RawPrompt, ...]:
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
    no_ops: ClassVar[dict[str, tuple[Any, ...]]] = TextRequest.no_ops | {
        "best_of": (1,),
        "echo": (False,),
        "suffix": (),
    }

    prompt: Annotated[
        tuple[RawPrompt, ...],
        PlainValidator(
            _as_prompts, json_schema_input_type=str | list[str] | list[int] | list[list[int]]
        ),
    ]
    logprobs: int | None = Field(None, ge=0, le=5)


def parse_request(schema: type[S], body: dict[str, Any]) -> S:
    """`body` as a `schema`. Null means absent, as in OpenAI's own schema.

    Raises UnknownParameter, UnsupportedParameter, MissingParameter or InvalidParameter, with the
    parameter's name as `param`.
    """
    for name in body.keys() - schema.model_fields.keys() - schema.no_ops.keys():
        raise UnknownParameter(f"Unknown parameter: '{name[:80]}'.", param=name[:80])
    present = {name: value for name, value in body.items() if value is not None}
    for name, defaults in schema.no_ops.items():
        value = present.pop(name, None)
        if value is not None and not any(_same(value, default) for default in defaults):
            raise UnsupportedParameter(
                f"'{name}' is not supported by this server; leave it out.", param=name
            )
    try:
        return schema.model_validate(present)
    except ValidationError as error:
        raise _first_problem(error) from None


def _same(value: Any, default: Any) -> bool:
    """Equality that distinguishes false from 0, as JSON does."""
    return isinstance(value, bool) is isinstance(default, bool) and bool(value == default)


def _first_problem(
    error: ValidationError,
) -> InvalidParameter | MissingParameter | UnknownParameter:
    problem = error.errors(include_url=False, include_input=False)[0]
    param = _path(problem["loc"])
    if problem["type"] == "missing":
        return MissingParameter(f"Missing required parameter: '{param}'.", param=param)
    if problem["type"] == "extra_forbidden":
        return UnknownParameter(f"Unknown or unsupported parameter: '{param}'.", param=param)
    return InvalidParameter(f"Invalid '{param}': {problem['msg']}.", param=param)


def _path(location: tuple[int | str, ...]) -> str:
    """`("messages", 0, "role")` as `messages[0].role`."""
    path = "".join(f"[{key}]" if isinstance(key, int) else f".{key[:80]}" for key in location)
    return path.removeprefix(".")
