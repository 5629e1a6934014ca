"""The shape of an error in each API: as a body, and as the event that ends a stream.

Which shape a client gets follows from the route that it called, and is decided here alone.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Container, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any


@dataclass(frozen=True, slots=True)
class ErrorFields:
    """What an error says, whatever its shape; `type` is OpenAI's."""

    status: int
    message: str
    type: str
    code: str | None = None
    param: str | None = None

    @classmethod
    def of_status(cls, status: int, message: str, code: str | None) -> ErrorFields:
        """The error of an upstream of which only the status is known."""
        kind = "server_error" if status >= 500 else "invalid_request_error"
        return cls(status, message, _OPENAI_TYPES.get(status, kind), code)


@dataclass(frozen=True, slots=True)
class SentStream:
    """What has left of a stream that ends with an error: the response that its events were about,
    None where none has left, and the number of its last event, -1 where events have none."""

    response: Mapping[str, Any] | None = None
    sequence_number: int = -1


class ErrorShape(ABC):
    """The errors of one API."""

    @abstractmethod
    def body(self, error: ErrorFields, request_id: str) -> dict[str, Any]:
        """The body of a response."""

    @abstractmethod
    def event(
        self, error: ErrorFields, request_id: str, sent: SentStream
    ) -> tuple[str, dict[str, Any]]:
        """The name of the event that ends a stream ("" where it has none), and its data."""


@dataclass(frozen=True, slots=True)
class OpenAIShape(ErrorShape):
    """`{"error": {message, type, param, code}}`; openai-python raises on such an event."""

    def body(self, error: ErrorFields, request_id: str) -> dict[str, Any]:
        return {
            "error": {
                "message": error.message,
                "type": error.type,
                "param": error.param,
                "code": error.code,
            }
        }

    def event(
        self, error: ErrorFields, request_id: str, sent: SentStream
    ) -> tuple[str, dict[str, Any]]:
        return "", self.body(error, request_id)


@dataclass(frozen=True, slots=True)
class ResponsesShape(OpenAIShape):
    """As OpenAI's other APIs, but streams end with `response.failed`, or with `error` where no
    response has begun."""

    def event(
        self, error: ErrorFields, request_id: str, sent: SentStream
    ) -> tuple[str, dict[str, Any]]:
        number = sent.sequence_number + 1
        code = error.code or error.type
        if sent.response is None:
            told = {"code": code, "message": error.message, "param": error.param}
            return "error", {"type": "error", **told, "sequence_number": number}
        response = {
            **sent.response,
            "status": "failed",
            "error": {"code": code, "message": error.message},
        }
        kind = "response.failed"
        return kind, {"type": kind, "sequence_number": number, "response": response}


@dataclass(frozen=True, slots=True)
class AnthropicShape(ErrorShape):
    """`{"type": "error", "error": {type, message}, request_id}`, in streams as `event: error`; what
    OpenAI calls `code` and `param` stands beside `message` where an error has it."""

    def body(self, error: ErrorFields, request_id: str) -> dict[str, Any]:
        more = {"code": error.code, "param": error.param}
        return {
            "type": "error",
            "error": {
                "type": anthropic_type(error),
                "message": error.message,
                **{name: value for name, value in more.items() if value is not None},
            },
            "request_id": request_id,
        }

    def event(
        self, error: ErrorFields, request_id: str, sent: SentStream
    ) -> tuple[str, dict[str, Any]]:
        return "error", self.body(error, request_id)


_OPENAI_TYPES: Mapping[int, str] = {
    HTTPStatus.UNAUTHORIZED: "authentication_error",
    HTTPStatus.FORBIDDEN: "permission_error",
    HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_error",
}
_ANTHROPIC_TYPES: Mapping[int, str] = {
    HTTPStatus.UNAUTHORIZED: "authentication_error",
    HTTPStatus.PAYMENT_REQUIRED: "billing_error",
    HTTPStatus.FORBIDDEN: "permission_error",
    HTTPStatus.NOT_FOUND: "not_found_error",
    HTTPStatus.REQUEST_TIMEOUT: "timeout_error",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "request_too_large",
    HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_error",
    HTTPStatus.SERVICE_UNAVAILABLE: "overloaded_error",
    HTTPStatus.GATEWAY_TIMEOUT: "timeout_error",
    529: "overloaded_error",
}
_ANTHROPIC_WORDS = frozenset({*_ANTHROPIC_TYPES.values(), "api_error", "invalid_request_error"})


def anthropic_type(error: ErrorFields) -> str:
    """Anthropic's type of an error: by its status, unless it is an error of Anthropic's already."""
    if error.type in _ANTHROPIC_WORDS - {"invalid_request_error"}:
        return error.type
    kind = "api_error" if error.status >= 500 else "invalid_request_error"
    return _ANTHROPIC_TYPES.get(error.status, kind)


OPENAI, RESPONSES, ANTHROPIC = OpenAIShape(), ResponsesShape(), AnthropicShape()
_MESSAGES = re.compile(r"(/v1)?/messages(/.*)?", re.DOTALL)
_RESPONSES = re.compile(r"(/v1)?/responses(/.*)?", re.DOTALL)
_OPENAI_ONLY = re.compile(
    r"(/v1)?/(chat/completions|completions|embeddings|moderations|images/.*|audio/.*)/?"
)
ANTHROPIC_VERSION = "anthropic-version"
"""The header that every client of Anthropic's API sends."""


def shape_of(path: str, headers: Container[str] = ()) -> ErrorShape:
    """The shape of errors for a request to `path` with these headers, whose names are lower case.

    Where the path does not say which API is meant (a list of models, an unknown URL), the header
    of Anthropic's clients does.
    """
    if _MESSAGES.fullmatch(path):
        return ANTHROPIC
    if _RESPONSES.fullmatch(path):
        return RESPONSES
    if ANTHROPIC_VERSION in headers and not _OPENAI_ONLY.fullmatch(path):
        return ANTHROPIC
    return OPENAI
