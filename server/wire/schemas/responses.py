"""The request body of OpenAI's `/v1/responses`, without tools and without a store."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import MinLen
from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from server.wire.schemas.base import UNSUPPORTED, OpenAIRequest, Part, RowSettings, without_absent
from server.wire.schemas.conversation import ImageUpload, Turn, as_parts, role_of
from server.wire.schemas.structured import PlainText, TextFormat, format_constraint
from server.wire.schemas.text import MAX_MESSAGES


class InputText(Part):
    type: Literal["input_text"]
    text: str


class OutputText(Part):
    """A text that the model has written, as it stands in an earlier response."""

    type: Literal["output_text"]
    text: str
    annotations: list[Any] = Field(default=[], max_length=0)
    logprobs: list[Any] | None = None


class InputImage(Part):
    type: Literal["input_image"]
    image_url: str
    detail: Literal["auto", "low", "high", "original"] | None = None

    @model_validator(mode="before")
    @classmethod
    def _require_the_image(cls, part: Any) -> Any:
        if isinstance(part, dict) and part.get("file_id") is not None:
            raise PydanticCustomError(
                UNSUPPORTED,
                "this server keeps no files: send the image itself as 'image_url', a data URL",
            )
        return without_absent(part, frozenset({"file_id"}))


_Content = Annotated[InputText | OutputText | InputImage, Field(discriminator="type")]
_OF_ANSWERS = frozenset({"id", "status", "phase"})
"""Members of items of earlier responses that say nothing to a model."""


class InputMessage(Part):
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

    @model_validator(mode="before")
    @classmethod
    def _require_a_message(cls, item: Any) -> Any:
        kind = item.get("type") if isinstance(item, dict) else None
        if isinstance(kind, str) and kind != "message":
            raise PydanticCustomError(
                UNSUPPORTED,
                "items of the type '{kind}' are not supported by this server, which runs no tools "
                "and stores no responses: send messages",
                {"kind": kind[:80]},
            )
        if not isinstance(item, dict):
            return item
        return {name: value for name, value in item.items() if name not in _OF_ANSWERS}

    def turn(self, path: str) -> Turn:
        """The message at `path` of the body. Raises InvalidParameter."""
        return Turn(
            role_of(self.role),
            tuple(
                ImageUpload.of_url(part.image_url, f"{path}.content[{number}].image_url")
                if isinstance(part, InputImage)
                else part.text
                for number, part in enumerate(self.content)
            ),
        )


class ResponsesStreamOptions(Part):
    include_obfuscation: Literal[False] = False


class TextOptions(Part):
    format: TextFormat = PlainText(type="text")
    verbosity: Literal["medium"] | None = None


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
        "include": ([],),
        "max_tool_calls": (),
        "moderation": (),
        "parallel_tool_calls": (True, False),
        "previous_response_id": (),
        "prompt": (),
        "prompt_cache_key": (),
        "prompt_cache_options": (),
        "prompt_cache_retention": (),
        "reasoning": ({}, {"effort": None}, {"effort": None, "summary": None}),
        "service_tier": ("auto", "default"),
        "store": (False,),
        "tool_choice": ("none", "auto"),
        "tools": ([],),
        "top_logprobs": (0,),
        "truncation": ("disabled",),
    }

    input: Annotated[
        list[InputMessage],
        BeforeValidator(_as_items, json_schema_input_type=str | list[InputMessage]),
        Field(min_length=1, max_length=MAX_MESSAGES),
    ]
    instructions: str | None = None
    max_output_tokens: int | None = Field(None, ge=1)
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    text: TextOptions = TextOptions()
    stream: bool = False
    stream_options: ResponsesStreamOptions | None = None
    metadata: dict[str, str] | None = None
    safety_identifier: str | None = None

    conversation_at: ClassVar[str] = "input"

    def turns(self) -> list[Turn]:
        """The conversation, `instructions` first. Raises InvalidParameter."""
        turns = [item.turn(f"input[{i}]") for i, item in enumerate(self.input)]
        return [Turn("system", (self.instructions,)), *turns] if self.instructions else turns

    def row_settings(self) -> RowSettings:
        """How the row of the request is sampled."""
        return RowSettings(
            temperature=self.temperature,
            top_p=self.top_p,
            max_tokens=self.max_output_tokens,
            max_tokens_at="max_output_tokens",
            constraint=format_constraint(self.text.format, "text.format"),
        )
