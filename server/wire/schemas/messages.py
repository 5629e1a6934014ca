"""Request bodies of Anthropic's `/v1/messages` and its `/count_tokens`."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property, partial
from typing import Annotated, Any, ClassVar, Literal, Self

from annotated_types import MaxLen, MinLen
from pydantic import BeforeValidator, Field, model_validator

from server.errors import InvalidParameter
from server.services.interface import SamplingOptions
from server.services.tools.offered import OfferedTools
from server.wire.schemas.base import ModelRequest, Part, ReturnedPart, RowSettings
from server.wire.schemas.chat_messages import CacheControl
from server.wire.schemas.conversation import DataUrl, ImageUpload, ToolCall, Turn, as_parts, joined
from server.wire.schemas.structured import OutputFormat, format_constraint
from server.wire.schemas.text import MAX_MESSAGES, MAX_STOP
from server.wire.schemas.tools import MAX_TOOLS, ToolName, definition, functions_alone, offered
from steering.constraint import Constraint

MAX_STOPS = 16


class _Block(ReturnedPart):
    cache_control: CacheControl | None = None


class TextBlock(_Block):
    """A text. What an earlier answer has cited in it is not read."""

    type: Literal["text"]
    text: str
    citations: list[dict[str, Any]] = []


class Base64Source(Part):
    type: Literal["base64"]
    media_type: Literal["image/jpeg", "image/png", "image/webp", "image/gif"]
    data: str


class UrlSource(Part):
    type: Literal["url"]
    url: DataUrl


class ImageBlock(_Block):
    type: Literal["image"]
    source: Annotated[Base64Source | UrlSource, Field(discriminator="type")]

    def upload(self, path: str) -> ImageUpload:
        """The image of the block at `path` of the body. Raises InvalidParameter."""
        source = self.source
        if isinstance(source, UrlSource):
            return ImageUpload.of_url(source.url, f"{path}.source.url")
        return ImageUpload(source.data, source.media_type, f"{path}.source.data", is_exact=True)


class ToolUseBlock(_Block):
    """A call that the assistant has made."""

    type: Literal["tool_use"]
    id: str = Field(min_length=1, max_length=256)
    name: ToolName
    input: dict[str, Any]


_ResultPart = Annotated[TextBlock | ImageBlock, Field(discriminator="type")]


class ToolResultBlock(_Block):
    """What came of a call. Whether that is an error its text says."""

    type: Literal["tool_result"]
    tool_use_id: str = Field(min_length=1, max_length=256)
    content: Annotated[
        list[_ResultPart],
        BeforeValidator(partial(as_parts, "text"), json_schema_input_type=str | list[_ResultPart]),
    ] = []
    is_error: bool | None = None


class ThinkingBlock(_Block):
    """What the assistant has thought before an earlier answer. Its signature is not checked."""

    type: Literal["thinking"]
    thinking: str
    signature: str = ""


class RedactedThinkingBlock(_Block):
    """Thoughts that nobody but their maker can read: left out."""

    type: Literal["redacted_thinking"]
    data: str


_Content = Annotated[
    TextBlock | ImageBlock | ToolUseBlock | ToolResultBlock | ThinkingBlock | RedactedThinkingBlock,
    Field(discriminator="type"),
]


class InputMessage(Part):
    role: Literal["user", "assistant"]
    content: Annotated[
        list[_Content],
        BeforeValidator(partial(as_parts, "text"), json_schema_input_type=str | list[_Content]),
        MinLen(1),
    ]

    def turns(self, path: str) -> list[Turn]:
        """The message at `path` of the body: a turn for each result of a tool, the others as one.
        Raises InvalidParameter."""
        turns = []
        for number, block in enumerate(self.content):
            place = f"{path}.content[{number}]"
            self._require_role(block, place)
            turns.append(self._turn(block, place))
        return joined(turns)

    def _turn(self, block: _Content, path: str) -> Turn:
        if isinstance(block, ToolResultBlock):
            return Turn("tool", _parts(block.content, path), call_id=block.tool_use_id)
        if isinstance(block, ToolUseBlock):
            return Turn(self.role, (), calls=(ToolCall(block.id, block.name, block.input),))
        if isinstance(block, ThinkingBlock):
            return Turn(self.role, (), reasoning=block.thinking)
        if isinstance(block, RedactedThinkingBlock):
            return Turn(self.role, ())
        return Turn(
            self.role, (block.text if isinstance(block, TextBlock) else block.upload(path),)
        )

    def _require_role(self, block: _Content, path: str) -> None:
        wanted = (
            "user"
            if isinstance(block, ToolResultBlock)
            else "assistant"
            if isinstance(block, ToolUseBlock | ThinkingBlock | RedactedThinkingBlock)
            else self.role
        )
        if wanted != self.role:
            raise InvalidParameter(
                f"'{path}' is a block of the type '{block.type}', which belongs in a message of "
                f"the role '{wanted}'.",
                param=path,
            )


def _parts(blocks: list[_ResultPart], path: str) -> tuple[str | ImageUpload, ...]:
    return tuple(
        block.text if isinstance(block, TextBlock) else block.upload(f"{path}.content[{number}]")
        for number, block in enumerate(blocks)
    )


class Tool(Part):
    """A tool that the client runs. How its arguments are streamed is the server's choice."""

    type: Literal["custom"] | None = None
    name: ToolName
    description: str | None = None
    input_schema: dict[str, Any]
    cache_control: CacheControl | None = None
    strict: bool | None = None
    eager_input_streaming: bool | None = None
    defer_loading: Literal[False] | None = None
    input_examples: list[dict[str, Any]] | None = None
    allowed_callers: list[Literal["direct"]] | None = None


_Tool = Annotated[Tool, functions_alone("custom")]


class _Choice(Part):
    disable_parallel_tool_use: bool = False


class ModeChoice(_Choice):
    type: Literal["auto", "any"]


class NoChoice(Part):
    type: Literal["none"]


class NamedChoice(_Choice):
    type: Literal["tool"]
    name: ToolName


_ToolChoice = Annotated[ModeChoice | NoChoice | NamedChoice, Field(discriminator="type")]


class Thinking(Part):
    """Accepted and without effect: what a model thinks is part of its answer here."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: int | None = None
    display: str | None = None


class Metadata(Part):
    user_id: str | None = None


class OutputConfig(Part):
    """`effort` is accepted and without effect."""

    format: OutputFormat | None = None
    effort: str | None = None


class CountTokensRequest(ModelRequest):
    no_ops: ClassVar[dict[str, tuple[Any, ...]]] = {
        "context_management": (),
        "mcp_servers": ([],),
        "speed": ("standard",),
        "user_profile_id": (),
    }

    messages: list[InputMessage] = Field(min_length=1, max_length=MAX_MESSAGES)
    system: Annotated[
        list[TextBlock],
        BeforeValidator(partial(as_parts, "text"), json_schema_input_type=str | list[TextBlock]),
    ] = []
    tools: list[_Tool] = Field([], max_length=MAX_TOOLS)
    tool_choice: _ToolChoice | None = None
    cache_control: CacheControl | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = None
    """The older place of `output_config.format`."""

    conversation_at: ClassVar[str] = "messages"

    @model_validator(mode="after")
    def _ends_with_the_user(self) -> Self:
        if self.messages[-1].role == "assistant":
            raise InvalidParameter(
                "The last message is the assistant's, and this server does not go on writing one: "
                "end with a message of the user.",
                param=f"messages[{len(self.messages) - 1}]",
            )
        return self

    def turns(self) -> list[Turn]:
        """The conversation, `system` first, messages of one role behind each other as one, as
        Anthropic's API reads them. Raises InvalidParameter."""
        turns = [
            turn
            for number, message in enumerate(self.messages)
            for turn in message.turns(f"messages[{number}]")
        ]
        system = [block.text for block in self.system if block.text]
        return joined([Turn("system", tuple(system)), *turns] if system else turns)

    def offered_tools(self) -> OfferedTools | None:
        """The tools that the answer may call. Raises InvalidParameter."""
        tools = self._offered()
        return tools and replace(tools, parameters_at="input_schema")

    def _offered(self) -> OfferedTools | None:
        definitions = [
            definition(tool.name, tool.description, tool.input_schema) for tool in self.tools
        ]
        choice = self.tool_choice
        if choice is None:
            return offered(definitions, "auto")
        if isinstance(choice, NoChoice):
            return offered(definitions, "none")
        parallel = not choice.disable_parallel_tool_use
        if isinstance(choice, NamedChoice):
            return offered(definitions, "required", only=[choice.name], parallel=parallel)
        mode: Literal["auto", "required"] = "auto" if choice.type == "auto" else "required"
        return offered(definitions, mode, parallel=parallel)

    @cached_property
    def constraint(self) -> Constraint | None:
        """What the answer matches. Raises InvalidParameter."""
        newer = self.output_config.format if self.output_config is not None else None
        if newer is not None and self.output_format is not None:
            raise InvalidParameter(
                "'output_config.format' and 'output_format' say the same; give the first.",
                param="output_format",
            )
        if newer is not None:
            return format_constraint(newer, "output_config.format")
        return format_constraint(self.output_format, "output_format")


class MessagesRequest(CountTokensRequest):
    no_ops: ClassVar[dict[str, tuple[Any, ...]]] = CountTokensRequest.no_ops | {
        "container": (),
        "inference_geo": (),
        "service_tier": ("auto", "standard_only"),
    }

    max_tokens: int = Field(ge=1)
    stop_sequences: Annotated[
        list[Annotated[str, MinLen(1), MaxLen(MAX_STOP)]], MaxLen(MAX_STOPS)
    ] = []
    temperature: float = Field(1.0, ge=0, le=1)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0, lt=2**31)
    stream: bool = False
    metadata: Metadata | None = None

    def row_settings(self) -> RowSettings:
        """How the row of the request is sampled."""
        return RowSettings(
            temperature=self.temperature,
            top_p=self.top_p,
            stop=tuple(self.stop_sequences),
            max_tokens=self.max_tokens,
            lowered=True,
            options=SamplingOptions(top_k=self.top_k),
            constraint=self.constraint,
        )
