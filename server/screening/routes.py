"""The routes that can be screened, and the contents of their requests and responses.

A policy that screens text refuses every other route, unless it lists the path as unscreened.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from guard.config.policy_schema import Place
from server.edge.paths import path_pattern
from server.screening.streams.formats.base import StreamFormat, StreamOptions
from server.screening.streams.formats.choices import ChatFormat, CompletionFormat
from server.screening.streams.formats.images import ImagesFormat
from server.screening.streams.formats.messages import MessagesFormat
from server.screening.streams.formats.responses import ResponsesFormat


def _itself(answer: dict[str, Any]) -> dict[str, Any] | None:
    return answer


@dataclass(frozen=True, slots=True)
class Route:
    """How the requests and responses of a route are screened.

    `default_place`: the place of a request's texts that stand at no other.
    `stream_format`: makes the reader of its streamed events; None where it has no stream.
    `response_kind`: "text" is JSON; other kinds ("audio") are not read, and pass where the policy
    lists them as unscreened.
    `generates`: content of its responses that is not text and always passes.
    `accepts_forms`: its requests may be forms.
    `multiple_choices`: a request may ask for several choices, which end independently.
    `takes_xargs`: vLLM reads `vllm_xargs` there, and so does our plugin.
    `runs_model`: its requests have a model generate something.
    `separate_messages`: each event of its streams is read, and blocked, by itself.
    `reports_errors`: its errors are for clients, no model reads them.
    `verdict_holder`: where a whole answer has the verdict, as `guard`; None: it can have none.
    """

    name: str
    default_place: Place = "user"
    stream_format: Callable[[StreamOptions], StreamFormat] | None = None
    response_kind: str = "text"
    generates: tuple[str, ...] = ()
    accepts_forms: bool = False
    multiple_choices: bool = False
    takes_xargs: bool = False
    runs_model: bool = True
    separate_messages: bool = False
    reports_errors: bool = True
    verdict_holder: Callable[[dict[str, Any]], dict[str, Any] | None] = _itself


_CHAT = Route("chat", stream_format=ChatFormat, multiple_choices=True, takes_xargs=True)
_COMPLETIONS = Route(
    "completions", stream_format=CompletionFormat, multiple_choices=True, takes_xargs=True
)
_RESPONSES = Route("responses", stream_format=ResponsesFormat, takes_xargs=True)
_STORED = Route("responses", stream_format=ResponsesFormat, runs_model=False)
_MESSAGES = Route("messages", stream_format=MessagesFormat, takes_xargs=True)
_IMAGES = Route(
    "images",
    default_place="images",
    stream_format=ImagesFormat,
    generates=("pictures",),
    accepts_forms=True,
)
_LISTING = Route("listing", runs_model=False)

_ROUTES: tuple[tuple[str, str, Route], ...] = (
    ("POST", "/v1/chat/completions", _CHAT),
    ("POST", "/v1/completions", _COMPLETIONS),
    ("POST", "/v1/responses", _RESPONSES),
    ("POST", "/v1/responses/input_tokens", _LISTING),
    ("POST", "/v1/responses/compact", Route("responses")),
    ("GET", "/v1/responses/{id}", _STORED),
    ("GET", "/v1/responses/{id}/input_items", _STORED),
    ("DELETE", "/v1/responses/{id}", _LISTING),
    ("POST", "/v1/responses/{id}/cancel", _STORED),
    ("POST", "/v1/messages", _MESSAGES),
    ("POST", "/v1/messages/count_tokens", _LISTING),
    ("POST", "/v1/images/generations", _IMAGES),
    ("POST", "/v1/images/edits", _IMAGES),
    ("POST", "/v1/embeddings", Route("embeddings", runs_model=False)),
    ("POST", "/v1/audio/speech", Route("speech", response_kind="audio")),
    ("GET", "/v1/models", _LISTING),
    ("GET", "/v1/models/{id:path}", _LISTING),
    ("DELETE", "/v1/models/{id:path}", _LISTING),
)
_PLAIN = {(method, path): route for method, path, route in _ROUTES if "{" not in path}
_PATTERNS = [
    (method, path_pattern(path), path, route) for method, path, route in _ROUTES if "{" in path
]
TEMPLATES: tuple[tuple[str, tuple[str, ...]], ...] = tuple(
    (path, (method,)) for method, path, _ in _ROUTES
)
"""The paths of all routes, each with a method that it takes."""


def route_of(method: str, path: str) -> tuple[Route | None, str]:
    """The route of a request and its name in metrics; (None, "other") where it is not known."""
    method = "GET" if method == "HEAD" else method
    if (plain := _PLAIN.get((method, path))) is not None:
        return plain, path
    for route_method, pattern, template, route in _PATTERNS:
        if route_method == method and pattern.fullmatch(path):
            return route, template
    return None, "other"
