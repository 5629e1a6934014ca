"""Request bodies of Anthropic's `/v1/messages` and its `/count_tokens`, without tools."""

from __future__ import annotations

from functools import cached_property, partial
from typing import Annotated, Any, ClassVar, Literal, Self

from annotated_types import MaxLen, MinLen
from pydantic import BeforeValidator, Field, model_validator

from server.errors import InvalidParameter
from server.services.interface import SamplingOptions
from server.wire.schemas.base import ModelRequest, Part, RowSettings, without_absent
from server.wire.schemas.conversation import ImageUpload, Turn, as_parts, joined
from server.wire.schemas.structured import OutputFormat, format_constraint
from server.wire.schemas.text import MAX_MESSAGES, MAX_STOP
from steering.constraint import Constraint

MAX_STOPS = 16


class CacheControl(Part):
    """Accepted and without effect: which prompts are kept is not the client's choice here."""

    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None


class _Block(Part):
    cache_control: CacheControl | None = None

    @model_validator(mode="before")
    @classmethod
    def _drop_absent(cls, block: Any) -> Any:
        return without_absent(block, frozenset({"citations"}))


class TextBlock(_Block):
    type: Literal["text"]
    text: str


class Base64Source(Part):
    type: Literal["base64"]
    media_type: Literal["image/jpeg", "image/png", "image/webp", "image/gif"]
    data: str


class UrlSource(Part):
    type: Literal["url"]
    url: str


class ImageBlock(_Block):
    type: Literal["image"]
    source: Annotated[Base64Source | UrlSource, Field(discriminator="type")]

    def upload(self, path: str) -> ImageUpload:
        """The image of the block at `path` of the body. Raises InvalidParameter."""
        source = self.source
        if isinstance(source, UrlSource):
            return ImageUpload.of_url(source.url, f"{path}.source.url")
        return ImageUpload(source.data, source.media_type, f"{path}.source.data", is_exact=True)


_Content = Annotated[TextBlock | ImageBlock, Field(discriminator="type")]


class InputMessage(Part):
    role: Literal["user", "assistant"]
    content: Annotated[
        list[_Content],
        BeforeValidator(partial(as_parts, "text"), json_schema_input_type=str | list[_Content]),
        MinLen(1),
    ]

    def turn(self, path: str) -> Turn:
        """The message at `path` of the body. Raises InvalidParameter."""
        return Turn(
            self.role,
            tuple(
                part.text
                if isinstance(part, TextBlock)
                else part.upload(f"{path}.content[{number}]")
                for number, part in enumerate(self.content)
            ),
        )


class Metadata(Part):
    user_id: str | None = None


class OutputConfig(Part):
    format: OutputFormat | None = None


class CountTokensRequest(ModelRequest):
    no_ops: ClassVar[dict[str, tuple[Any, ...]]] = {
        "context_management": (),
        "mcp_servers": ([],),
        "speed": ("standard",),
        "thinking": ({"type": "disabled"},),
        "tool_choice": ({"type": "auto"}, {"type": "none"}),
        "tools": ([],),
        "user_profile_id": (),
    }

    messages: list[InputMessage] = Field(min_length=1, max_length=MAX_MESSAGES)
    system: Annotated[
        list[TextBlock],
        BeforeValidator(partial(as_parts, "text"), json_schema_input_type=str | list[TextBlock]),
    ] = []
    cache_control: CacheControl | None = None
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
        turns = [message.turn(f"messages[{i}]") for i, message in enumerate(self.messages)]
        system = [block.text for block in self.system if block.text]
        return joined([Turn("system", tuple(system)), *turns] if system else turns)

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
            options=SamplingOptions(top_k=self.top_k),
            constraint=self.constraint,
        )
