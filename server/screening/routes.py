"""The routes that can be screened, and the contents of their requests and responses.

A policy that screens text refuses every other route, unless it lists the path as unscreened.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from guard.config.schema import Place
from server.screening.streams.formats.base import StreamFormat, StreamOptions
from server.screening.streams.formats.choices import ChatFormat, CompletionFormat
from server.screening.streams.formats.images import ImagesFormat
from server.screening.streams.formats.messages import MessagesFormat
from server.screening.streams.formats.responses import ResponsesFormat


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
    """

    name: str
    default_place: Place = "user"
    stream_format: Callable[[StreamOptions], StreamFormat] | None = None
    response_kind: str = "text"
    generates: tuple[str, ...] = ()
    accepts_forms: bool = False
    multiple_choices: bool = False
    takes_xargs: bool = False


_CHAT = Route("chat", stream_format=ChatFormat, multiple_choices=True, takes_xargs=True)
_COMPLETIONS = Route(
    "completions", stream_format=CompletionFormat, multiple_choices=True, takes_xargs=True
)
_RESPONSES = Route("responses", stream_format=ResponsesFormat, takes_xargs=True)
_STORED = Route("responses", stream_format=ResponsesFormat)
_IMAGES = Route(
    "images",
    default_place="images",
    stream_format=ImagesFormat,
    generates=("pictures",),
    accepts_forms=True,
)
_LISTING = Route("listing")

_ROUTES: tuple[tuple[str, str, Route], ...] = (
    ("POST", "/v1/chat/completions", _CHAT),
    ("POST", "/v1/completions", _COMPLETIONS),
    ("POST", "/v1/responses", _RESPONSES),
    ("GET", "/v1/responses/{id}", _STORED),
    ("GET", "/v1/responses/{id}/input_items", _STORED),
    ("DELETE", "/v1/responses/{id}", _LISTING),
    ("POST", "/v1/responses/{id}/cancel", _STORED),
    ("POST", "/v1/messages", Route("messages", stream_format=MessagesFormat)),
    ("POST", "/v1/messages/count_tokens", _LISTING),
    ("POST", "/v1/images/generations", _IMAGES),
    ("POST", "/v1/images/edits", _IMAGES),
    ("POST", "/v1/embeddings", Route("embeddings")),
    ("POST", "/v1/audio/speech", Route("speech", response_kind="audio")),
    ("GET", "/v1/models", _LISTING),
    ("GET", "/v1/models/{id}", _LISTING),
)
_SEGMENT = re.compile(r"\{id\}")
_PATTERNS = [
    (method, re.compile(_SEGMENT.sub("[^/]+", path)), path, route)
    for method, path, route in _ROUTES
]


def route_of(method: str, path: str) -> tuple[Route | None, str]:
    """The route of a request and its name in metrics; (None, "other") where it is not known."""
    method = "GET" if method == "HEAD" else method
    for route_method, pattern, template, route in _PATTERNS:
        if route_method == method and pattern.fullmatch(path):
            return route, template
    return None, "other"
