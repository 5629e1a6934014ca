"""The request body of OpenAI's `/v1/responses`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import MinLen
from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from server.services.tools.offered import OfferedTools
from server.wire.schemas.base import UNSUPPORTED, OpenAIRequest, Part, ReturnedPart, RowSettings
from server.wire.schemas.conversation import (
    DataUrl,
    ImageUpload,
    ToolCall,
    Turn,
    as_parts,
    joined,
    role_of,
)
from server.wire.schemas.structured import PlainText, TextFormat, format_constraint
from server.wire.schemas.text import MAX_MESSAGES
from server.wire.schemas.tools import (
    MAX_TOOLS,
    Function,
    ModeChoice,
    ToolName,
    as_mode,
    functions_alone,
    offered,
)


class InputText(ReturnedPart):
    type: Literal["input_text"]
    text: str


class OutputText(ReturnedPart):
    """A text that the model has written, as it stands in an earlier response."""

    type: Literal["output_text"]
    text: str
    annotations: list[dict[str, Any]] = []
    logprobs: list[Any] | None = None


class InputImage(ReturnedPart):
    type: Literal["input_image"]
    image_url: DataUrl
    detail: Literal["auto", "low", "high", "original"] | None = None

    @model_validator(mode="before")
    @classmethod
    def _require_the_image(cls, part: Any) -> Any:
        if isinstance(part, dict) and part.get("file_id") is not None:
            raise PydanticCustomError(
                UNSUPPORTED,
                "this server keeps no files: send the image itself as 'image_url', a data URL",
            )
        return part


class Refusal(ReturnedPart):
    """What the assistant has said in place of an answer."""

    type: Literal["refusal"]
    refusal: str


_Content = Annotated[InputText | OutputText | Refusal | InputImage, Field(discriminator="type")]
_OF_ANSWERS = frozenset({"id", "status", "phase"})
"""Members of items of earlier responses that say nothing to a model."""


class _Item(ReturnedPart):
    @model_validator(mode="before")
    @classmethod
    def _drop_what_says_nothing(cls, item: Any) -> Any:
        if not isinstance(item, dict):
            return item
        return {name: value for name, value in item.items() if name not in _OF_ANSWERS}


class InputMessage(_Item):
    """A message: those that a client writes, and those of earlier responses."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        list[_Content],
        BeforeValidator(
            partial(as_parts, "input_text"), json_schema_input_type=str | list[_Content]
        ),
        MinLen(1),
    ]

    def turn(self, path: str) -> Turn:
        """The message at `path` of the body. Raises InvalidParameter."""
        return Turn(role_of(self.role), _parts(self.content, path))


class FunctionCall(_Item):
    """A call of an earlier response."""

    type: Literal["function_call"]
    call_id: str = Field(min_length=1, max_length=256)
    name: ToolName
    arguments: str
    caller: dict[str, Any] | None = None

    def turn(self, path: str) -> Turn:
        """See `InputMessage.turn`."""
        return Turn(
            "assistant", (), calls=(ToolCall.of_text(self.call_id, self.name, self.arguments),)
        )


class FunctionCallOutput(_Item):
    """What came of a call."""

    type: Literal["function_call_output"]
    call_id: str = Field(min_length=1, max_length=256)
    output: Annotated[
        list[_Content],
        BeforeValidator(
            partial(as_parts, "input_text"), json_schema_input_type=str | list[_Content]
        ),
    ]
    caller: dict[str, Any] | None = None

    def turn(self, path: str) -> Turn:
        """See `InputMessage.turn`."""
        return Turn("tool", _parts(self.output, path, "output"), call_id=self.call_id)


class ReasoningText(ReturnedPart):
    type: Literal["reasoning_text", "summary_text"]
    text: str


class Reasoning(_Item):
    """What the assistant has thought. Summaries and what is encrypted are not read."""

    type: Literal["reasoning"]
    summary: list[ReasoningText] = []
    content: list[ReasoningText] | None = None
    encrypted_content: str | None = None

    def turn(self, path: str) -> Turn:
        """See `InputMessage.turn`."""
        texts = [part.text for part in self.content or ()]
        return Turn("assistant", (), reasoning="\n".join(texts) or None)


def _parts(
    content: Sequence[_Content], path: str, member: str = "content"
) -> tuple[str | ImageUpload, ...]:
    return tuple(
        ImageUpload.of_url(part.image_url, f"{path}.{member}[{number}].image_url")
        if isinstance(part, InputImage)
        else part.refusal
        if isinstance(part, Refusal)
        else part.text
        for number, part in enumerate(content)
    )


def _with_type(item: Any) -> Any:
    """An item that does not say what it is is a message."""
    is_bare = isinstance(item, dict) and item.get("type") is None
    return {**item, "type": "message"} if is_bare else item


_AnyItem = Annotated[
    InputMessage | FunctionCall | FunctionCallOutput | Reasoning, Field(discriminator="type")
]
_InputItem = Annotated[_AnyItem, BeforeValidator(_with_type, json_schema_input_type=_AnyItem)]


class FunctionTool(Function):
    type: Literal["function"]
    defer_loading: Literal[False] | None = None


_Tool = Annotated[FunctionTool, functions_alone("function")]


class NamedTool(Part):
    """The choice of one tool, and an item of a list of such."""

    type: Literal["function"]
    name: ToolName


class AllowedChoice(Part):
    """The choice among some of the tools."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: list[NamedTool]


_AnyChoice = Annotated[ModeChoice | NamedTool | AllowedChoice, Field(discriminator="type")]
_ToolChoice = Annotated[
    _AnyChoice, BeforeValidator(as_mode, json_schema_input_type=str | _AnyChoice)
]


class ResponsesStreamOptions(Part):
    include_obfuscation: Literal[False] = False


class TextOptions(Part):
    format: TextFormat = PlainText(type="text")
    verbosity: Literal["low", "medium", "high"] | None = None
    """Accepted and without effect."""


def _as_items(value: Any) -> Any:
    return [{"role": "user", "content": value}] if isinstance(value, str) else value


class ResponsesRequest(OpenAIRequest):
    no_ops: ClassVar[dict[str, tuple[Any, ...]]] = {
        "access_programs": ([],),
        "background": (False,),
        "background_options": (),
        "context_management": ([],),
        "conversation": (),
        "image": (),
        "moderation": (),
        "prompt": (),
        "top_logprobs": (0,),
        "truncation": ("disabled",),
    }

    input: Annotated[
        list[_InputItem],
        BeforeValidator(_as_items, json_schema_input_type=str | list[_InputItem]),
        Field(min_length=1, max_length=MAX_MESSAGES),
    ]
    instructions: str | None = None
    max_output_tokens: int | None = Field(None, ge=1)
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    text: TextOptions = TextOptions()
    stream: bool = False
    stream_options: ResponsesStreamOptions | None = None
    tools: list[_Tool] = Field([], max_length=MAX_TOOLS)
    tool_choice: _ToolChoice | None = None
    parallel_tool_calls: bool = True
    previous_response_id: str | None = Field(None, max_length=256)
    store: bool | None = None
    metadata: dict[str, str] | None = None
    safety_identifier: str | None = None

    # Accepted and without effect: hints, and what is only for a hosted service.
    include: list[str] | None = None
    max_tool_calls: int | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    prompt_cache_retention: str | None = None
    reasoning: dict[str, Any] | None = None
    service_tier: str | None = None

    conversation_at: ClassVar[str] = "input"

    def turns(self) -> list[Turn]:
        """The conversation, `instructions` first. Raises InvalidParameter."""
        return self.instructed(self.own_turns())

    def instructed(self, turns: Sequence[Turn]) -> list[Turn]:
        """`turns` behind the `instructions` of this request."""
        return [Turn("system", (self.instructions,)), *turns] if self.instructions else [*turns]

    def own_turns(self) -> list[Turn]:
        """The conversation without `instructions`; what one answer has said and called is one turn.
        Raises InvalidParameter."""
        turns: list[Turn] = []
        for number, item in enumerate(self.input):
            turn = item.turn(f"input[{number}]")
            goes_on = turns and turns[-1].role == turn.role == "assistant"
            turns[-1:] = joined([turns[-1], turn]) if goes_on else [*turns[-1:], turn]
        return turns

    def offered_tools(self) -> OfferedTools | None:
        """The tools that the answer may call. Raises InvalidParameter."""
        tools = self._offered()
        return tools and replace(tools, parameters_at="parameters")

    def _offered(self) -> OfferedTools | None:
        definitions = [tool.definition() for tool in self.tools]
        choice, parallel = self.tool_choice, self.parallel_tool_calls
        if isinstance(choice, NamedTool):
            return offered(definitions, "required", only=[choice.name], parallel=parallel)
        if isinstance(choice, AllowedChoice):
            only = [tool.name for tool in choice.tools]
            return offered(definitions, choice.mode, only=only, parallel=parallel)
        return offered(definitions, choice.type if choice else "auto", parallel=parallel)

    def row_settings(self) -> RowSettings:
        """How the row of the request is sampled."""
        return RowSettings(
            temperature=self.temperature,
            top_p=self.top_p,
            max_tokens=self.max_output_tokens,
            max_tokens_at="max_output_tokens",
            constraint=format_constraint(self.text.format, "text.format"),
        )
