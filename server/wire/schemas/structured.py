"""The parts of bodies that ask for an answer of a given form, in the names of each API.

OpenAI's `response_format` (and `text.format` of responses), vLLM's `structured_outputs` and its
older `guided_json`, `guided_regex` and `guided_choice`, Anthropic's `output_config.format`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Annotated, Any, Literal

from annotated_types import MaxLen, MinLen
from pydantic import Field

from server.errors import InvalidParameter
from server.wire.schemas.base import Part
from steering.constraint import MAX_CHOICES, MAX_PATTERN, Constraint, ConstraintError

JsonSchema = dict[str, Any] | bool
_Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
Pattern = Annotated[str, MinLen(1), MaxLen(MAX_PATTERN)]
Choices = Annotated[list[Annotated[str, MinLen(1)]], MinLen(1), MaxLen(MAX_CHOICES)]


class PlainText(Part):
    type: Literal["text"]


class JsonObject(Part):
    type: Literal["json_object"]


class NamedSchema(Part):
    """`strict` is taken and changes nothing: the answer always follows the schema."""

    name: _Name
    description: str | None = None
    schema_: JsonSchema = Field({}, alias="schema")
    strict: bool | None = None


class SchemaFormat(Part):
    """Of chats: the schema is in a part of its own."""

    type: Literal["json_schema"]
    json_schema: NamedSchema


class FlatSchemaFormat(NamedSchema):
    """Of responses: the schema is in the format itself."""

    type: Literal["json_schema"]


class OutputFormat(Part):
    """Anthropic's."""

    type: Literal["json_schema"]
    schema_: JsonSchema = Field(alias="schema")


ResponseFormat = Annotated[PlainText | JsonObject | SchemaFormat, Field(discriminator="type")]
TextFormat = Annotated[PlainText | JsonObject | FlatSchemaFormat, Field(discriminator="type")]


class StructuredOutputs(Part):
    """vLLM's: one of these."""

    json_: JsonSchema | None = Field(None, alias="json")
    json_object: Literal[True] | None = None
    regex: Pattern | None = None
    choice: Choices | None = None


class StructuredFields(Part):
    """The fields that say the form of an answer, of chats and plain completions."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: JsonSchema | None = None
    guided_regex: Pattern | None = None
    guided_choice: Choices | None = None

    @cached_property
    def constraint(self) -> Constraint | None:
        """What the answer matches. Raises InvalidParameter, also where two fields say it."""
        older: dict[str, tuple[Callable[..., Constraint], Any]] = {
            "guided_json": (Constraint.json_schema, self.guided_json),
            "guided_regex": (Constraint.regex, self.guided_regex),
            "guided_choice": (Constraint.choice, self.guided_choice),
        }
        found = [
            format_constraint(self.response_format, "response_format"),
            structured_constraint(self.structured_outputs, "structured_outputs"),
            *(
                _built(build, value, param) if value is not None else None
                for param, (build, value) in older.items()
            ),
        ]
        given = [constraint for constraint in found if constraint is not None]
        if len(given) > 1:
            first, second = given[0].param, given[1].param
            raise InvalidParameter(
                f"'{first}' and '{second}' both say the form of the answer; give one of them.",
                param=second,
            )
        return given[0] if given else None


def format_constraint(
    asked: PlainText | JsonObject | SchemaFormat | FlatSchemaFormat | OutputFormat | None,
    param: str,
) -> Constraint | None:
    """What an answer of that format matches. Raises InvalidParameter."""
    if asked is None or isinstance(asked, PlainText):
        return None
    if isinstance(asked, JsonObject):
        return Constraint.json_object(param=param)
    schema = asked.json_schema.schema_ if isinstance(asked, SchemaFormat) else asked.schema_
    return _built(Constraint.json_schema, schema, param)


def structured_constraint(asked: StructuredOutputs | None, param: str) -> Constraint | None:
    """As `format_constraint`, of vLLM's object, which has one member exactly."""
    if asked is None:
        return None
    builders: list[tuple[Callable[..., Constraint], Any]] = [
        (Constraint.json_schema, asked.json_),
        (Constraint.json_schema, {"type": "object"} if asked.json_object else None),
        (Constraint.regex, asked.regex),
        (Constraint.choice, asked.choice),
    ]
    given = [(build, value) for build, value in builders if value is not None]
    if len(given) != 1:
        raise InvalidParameter(
            f"'{param}' must have one of 'json', 'json_object', 'regex' and 'choice'.", param=param
        )
    return _built(*given[0], param)


def _built(build: Callable[..., Constraint], value: Any, param: str) -> Constraint:
    try:
        return build(value, param=param)
    except ConstraintError as error:
        raise InvalidParameter(f"Invalid '{param}': {error}.", param=param) from None
