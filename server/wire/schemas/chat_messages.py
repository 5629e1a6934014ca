"""The messages and tools of OpenAI's `/v1/chat/completions`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, Literal, Self

from annotated_types import MinLen
from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from server.services.tools.offered import OfferedTools
from server.wire.schemas.base import UNSUPPORTED, Part, ReturnedPart
from server.wire.schemas.conversation import DataUrl, ImageUpload, ToolCall, Turn, as_parts, role_of
from server.wire.schemas.tools import (
    Function,
    ModeChoice,
    ToolName,
    as_mode,
    functions_alone,
    offered,
)


class ImageUrl(Part):
    url: DataUrl
    detail: Literal["auto", "low", "high", "original"] | None = None
    """Accepted: how large an image is for the model is decided by the model's own processor."""


class CacheControl(Part):
    """Accepted and without effect: which prompts are kept is not the client's choice here."""

    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None


class TextPart(ReturnedPart):
    type: Literal["text"]
    text: str
    cache_control: CacheControl | None = None


class RefusalPart(ReturnedPart):
    """What the assistant has said in place of an answer."""

    type: Literal["refusal"]
    refusal: str


class ImagePart(Part):
    type: Literal["image_url"]
    image_url: ImageUrl
    cache_control: CacheControl | None = None


class CalledFunction(ReturnedPart):
    name: ToolName
    arguments: str


class CalledTool(ReturnedPart):
    """A call of an earlier answer; `index` stands in those that were streamed."""

    id: str = Field(min_length=1, max_length=256)
    type: Literal["function"] = "function"
    function: CalledFunction
    index: int | None = None

    def call(self) -> ToolCall:
        return ToolCall.of_text(self.id, self.function.name, self.function.arguments)


_Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]
_Content = Annotated[
    list[_Part],
    BeforeValidator(partial(as_parts, "text"), json_schema_input_type=str | list[_Part]),
    MinLen(1),
]
_AnswerPart = Annotated[TextPart | RefusalPart | ImagePart, Field(discriminator="type")]
_Answer = Annotated[
    list[_AnswerPart],
    BeforeValidator(partial(as_parts, "text"), json_schema_input_type=str | list[_AnswerPart]),
]


def _read(
    content: Sequence[TextPart | RefusalPart | ImagePart], path: str
) -> tuple[str | ImageUpload, ...]:
    """The texts and images of a message at `path` of the body. Raises InvalidParameter."""
    return tuple(
        ImageUpload.of_url(part.image_url.url, f"{path}.content[{number}].image_url.url")
        if isinstance(part, ImagePart)
        else part.text
        if isinstance(part, TextPart)
        else part.refusal
        for number, part in enumerate(content)
    )


class _Message(ReturnedPart):
    name: str | None = None
    cache_control: CacheControl | None = None


class InputMessage(_Message):
    role: Literal["system", "developer", "user"]
    content: _Content

    def turn(self, path: str) -> Turn:
        """The message at `path` of the body. Raises InvalidParameter."""
        return Turn(role_of(self.role), _read(self.content, path), name=self.name)


class AssistantMessage(_Message):
    """An earlier answer: its text, its calls, or both. What it was annotated with is not read."""

    role: Literal["assistant"]
    content: _Answer = []
    refusal: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[CalledTool] = []
    annotations: list[dict[str, Any]] = []

    @model_validator(mode="before")
    @classmethod
    def _require_tool_calls(cls, message: Any) -> Any:
        if isinstance(message, dict) and message.get("function_call") is not None:
            raise PydanticCustomError(
                UNSUPPORTED, "'function_call' is the older form of 'tool_calls': send these"
            )
        return message

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not (self.content or self.refusal or self.tool_calls):
            raise ValueError("a message of the assistant needs 'content' or 'tool_calls'")
        return self

    def turn(self, path: str) -> Turn:
        """See `InputMessage.turn`."""
        refusal = () if self.refusal is None else (self.refusal,)
        return Turn(
            "assistant",
            _read(self.content, path) + refusal,
            calls=tuple(call.call() for call in self.tool_calls),
            name=self.name,
            reasoning=self.reasoning_content,
        )


class ToolMessage(_Message):
    """What came of a call."""

    role: Literal["tool"]
    content: _Content
    tool_call_id: str = Field(min_length=1, max_length=256)

    def turn(self, path: str) -> Turn:
        """See `InputMessage.turn`."""
        parts = _read(self.content, path)
        return Turn("tool", parts, call_id=self.tool_call_id, name=self.name)


Message = Annotated[InputMessage | AssistantMessage | ToolMessage, Field(discriminator="role")]


class FunctionTool(Part):
    type: Literal["function"]
    function: Function
    cache_control: CacheControl | None = None


ChatTool = Annotated[FunctionTool, functions_alone("function")]


class NamedFunction(Part):
    name: ToolName


class NamedTool(Part):
    """The choice of one tool, and an item of a list of such."""

    type: Literal["function"]
    function: NamedFunction


class AllowedTools(Part):
    mode: Literal["auto", "required"]
    tools: list[NamedTool]


class AllowedChoice(Part):
    """The choice among some of the tools."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


_AnyChoice = Annotated[ModeChoice | NamedTool | AllowedChoice, Field(discriminator="type")]
ToolChoice = Annotated[
    _AnyChoice, BeforeValidator(as_mode, json_schema_input_type=str | _AnyChoice)
]


def offered_tools(
    tools: Sequence[FunctionTool], choice: ToolChoice | None, *, parallel: bool
) -> OfferedTools | None:
    """The tools that a request offers. Raises InvalidParameter as `tools.offered`."""
    definitions = [tool.function.definition() for tool in tools]
    if isinstance(choice, NamedTool):
        return offered(definitions, "required", only=[choice.function.name], parallel=parallel)
    if isinstance(choice, AllowedChoice):
        allowed = choice.allowed_tools
        only = [tool.function.name for tool in allowed.tools]
        return offered(definitions, allowed.mode, only=only, parallel=parallel)
    return offered(definitions, choice.type if choice else "auto", parallel=parallel)
