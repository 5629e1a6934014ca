"""What the bodies of all endpoints share: parts, the fields of every request, and their parsing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from server.errors import (
    InvalidParameter,
    MissingParameter,
    UnknownParameter,
    UnsupportedParameter,
)
from server.services.interface import PLAIN_SAMPLING, SamplingOptions
from steering.constraint import Constraint

S = TypeVar("S", bound="Part")


class Part(BaseModel):
    """Base of bodies and their parts: no coercion, no unknown names, no NaN."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    no_ops: ClassVar[dict[str, tuple[Any, ...]]] = {}
    """Parameters of the API's schema that are accepted with these default values only."""


class ReturnedPart(Part):
    """Base of parts that answers have: clients send them back with all members that their types
    know, null for those that the answer did not have."""

    @model_validator(mode="before")
    @classmethod
    def _drop_absent(cls, part: Any) -> Any:
        if not isinstance(part, dict):
            return part
        return {name: value for name, value in part.items() if value is not None}


class GuardOptions(Part):
    policy: str

    @model_validator(mode="before")
    @classmethod
    def _require_object(cls, options: Any) -> Any:
        if not isinstance(options, dict | GuardOptions):
            raise ValueError('it is an object, {"policy": NAME}')
        # named before a member that is missing, which it may be meant for
        for name in options if isinstance(options, dict) else ():
            if name not in cls.model_fields:
                raise PydanticCustomError(UNKNOWN, "{name}", {"name": str(name)[:80]})
        return options


class DebugGuardOptions(GuardOptions):
    """`debug` asks where guards act: for the masks of the pixels that they have changed, or the
    scores that they give each token."""

    debug: bool = False


class ModelRequest(Part):
    """The fields of every request to a model."""

    model: str
    guard: GuardOptions | None = None


class OpenAIRequest(ModelRequest):
    """What all bodies of OpenAI's APIs have beside."""

    user: str | None = None


@dataclass(frozen=True, slots=True)
class RowSettings:
    """How the rows of a request for text are sampled: `n` for each prompt.

    `max_tokens` None is the most that is possible; `max_tokens_at` is its name in the body. Where
    it is `lowered`, more than is possible is the most that is: for an API whose clients cannot
    leave it out. `debug` asks for the scores of each token.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    n: int = 1
    max_tokens: int | None = None
    max_tokens_at: str = "max_tokens"
    lowered: bool = False
    top_logprobs: int | None = None
    options: SamplingOptions = PLAIN_SAMPLING
    constraint: Constraint | None = None
    debug: bool = False


def parse_request(schema: type[S], body: dict[str, Any]) -> S:
    """`body` as a `schema`. Null means absent, as in OpenAI's own schema, and 8.0 is 8: JSON has
    one kind of number.

    Raises UnknownParameter, UnsupportedParameter, MissingParameter or InvalidParameter, with the
    parameter's name as `param`.
    """
    for name in body.keys() - schema.model_fields.keys() - schema.no_ops.keys():
        raise UnknownParameter(f"Unknown parameter: '{name[:80]}'.", param=name[:80])
    present = {name: _integer(value) for name, value in body.items() if value is not None}
    for name, defaults in schema.no_ops.items():
        value = present.pop(name, None)
        if value is not None and not any(_same(value, default) for default in defaults):
            raise UnsupportedParameter(
                f"'{name}' is not supported by this server; leave it out.", param=name
            )
    try:
        return schema.model_validate(present)
    except ValidationError as error:
        raise _first_problem(error, present) from None


def _integer(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _same(value: Any, default: Any) -> bool:
    """Equality that distinguishes false from 0, as JSON does."""
    return isinstance(value, bool) is isinstance(default, bool) and bool(value == default)


def _first_problem(
    error: ValidationError, body: dict[str, Any]
) -> InvalidParameter | MissingParameter | UnknownParameter | UnsupportedParameter:
    problem = error.errors(include_url=False, include_input=False)[0]
    param = _path(problem["loc"], body, is_missing=problem["type"] == "missing")
    if problem["type"] == "missing":
        return MissingParameter(f"Missing required parameter: '{param}'.", param=param)
    if problem["type"] == UNKNOWN:
        param = f"{param}.{problem['ctx']['name']}"
    if problem["type"] in {"extra_forbidden", UNKNOWN}:
        return UnknownParameter(f"Unknown or unsupported parameter: '{param}'.", param=param)
    if problem["type"] == "union_tag_not_found":
        place = f"{param}.{_discriminator(problem)}"
        return MissingParameter(f"Missing required parameter: '{place}'.", param=place)
    if problem["type"] == "union_tag_invalid":
        tag, known = str(problem["ctx"]["tag"])[:80], problem["ctx"]["expected_tags"]
        if (name := _discriminator(problem)) != "type":
            place = f"{param}.{name}"
            return InvalidParameter(f"Invalid '{place}': '{tag}' is none of {known}.", param=place)
        return UnsupportedParameter(
            f"'{param}' has the type '{tag}', which is not supported by this server; it takes "
            f"{known}.",
            param=param,
        )
    if problem["type"] == UNSUPPORTED:
        return UnsupportedParameter(f"'{param}': {problem['msg']}.", param=param)
    reason = problem["msg"].removeprefix("Value error, ")
    return InvalidParameter(f"Invalid '{param}': {reason}.", param=param)


def _discriminator(problem: Any) -> str:
    """The member that says which of several kinds a value is."""
    return str(problem["ctx"]["discriminator"]).strip("'")


UNKNOWN = "unknown"
"""The type of a PydanticCustomError for a member `name` that an object does not have."""
UNSUPPORTED = "unsupported"
"""The type of a PydanticCustomError for content of an API that this server does not take."""


def _path(location: tuple[int | str, ...], body: Any, *, is_missing: bool) -> str:
    """`("messages", 0, "role")` as `messages[0].role`, without the tags that pydantic puts behind
    the place of a value which may be of several kinds: `body` has no such members."""
    path = ""
    for number, key in enumerate(location):
        is_member = isinstance(body, dict) and key in body
        if isinstance(key, int):
            path += f"[{key}]"
            body = body[key] if isinstance(body, list) and key < len(body) else None
        elif is_member or (is_missing and number == len(location) - 1):
            path += f".{key[:80]}"
            body = body[key] if is_member else None
    return path.removeprefix(".")
