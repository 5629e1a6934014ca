"""Which routes have a reader: what their requests and answers are made of.

A route that is not here is not read: a policy that screens text refuses it unless it says that it
may pass.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from guard.config.schema import Place
from server.screening.streams.formats.base import StreamFormat
from server.screening.streams.formats.choices import ChatFormat, CompletionFormat
from server.screening.streams.formats.images import ImagesFormat
from server.screening.streams.formats.messages import MessagesFormat
from server.screening.streams.formats.responses import ResponsesFormat


@dataclass(frozen=True, slots=True)
class Route:
    """How a route is read.

    `place` is that of texts of a request that stand at no other. `stream` makes the reader of its
    events, None where it has none. `answer` is what its answers are: "text" is JSON, other kinds
    ("audio") are not read and pass where the policy lets them. `makes`: what is in its answers
    beside text, and always passes. `form`: its requests may be forms.
    `several`: a request may ask for more than one answer, each with an end of its own.
    `takes_xargs`: vLLM reads its own arguments there, which our plugin does.
    """

    name: str
    place: Place = "user"
    stream: Callable[[], StreamFormat] | None = None
    answer: str = "text"
    makes: tuple[str, ...] = ()
    form: bool = False
    several: bool = False
    takes_xargs: bool = False


_CHAT = Route("chat", stream=ChatFormat, several=True, takes_xargs=True)
_COMPLETIONS = Route("completions", stream=CompletionFormat, several=True, takes_xargs=True)
_RESPONSES = Route("responses", stream=ResponsesFormat, takes_xargs=True)
_STORED = Route("responses", stream=ResponsesFormat)
_IMAGES = Route("images", place="images", stream=ImagesFormat, makes=("pictures",), form=True)
_LISTING = Route("listing")

_ROUTES: tuple[tuple[str, str, Route], ...] = (
    ("POST", "/v1/chat/completions", _CHAT),
    ("POST", "/v1/completions", _COMPLETIONS),
    ("POST", "/v1/responses", _RESPONSES),
    ("GET", "/v1/responses/{id}", _STORED),
    ("GET", "/v1/responses/{id}/input_items", _STORED),
    ("DELETE", "/v1/responses/{id}", _LISTING),
    ("POST", "/v1/responses/{id}/cancel", _STORED),
    ("POST", "/v1/messages", Route("messages", stream=MessagesFormat)),
    ("POST", "/v1/messages/count_tokens", _LISTING),
    ("POST", "/v1/images/generations", _IMAGES),
    ("POST", "/v1/images/edits", _IMAGES),
    ("POST", "/v1/embeddings", Route("embeddings")),
    ("POST", "/v1/audio/speech", Route("speech", answer="audio")),
    ("GET", "/v1/models", _LISTING),
    ("GET", "/v1/models/{id}", _LISTING),
)
_SEGMENT = re.compile(r"\{id\}")
_PATTERNS = [
    (method, re.compile(_SEGMENT.sub("[^/]+", path)), path, route)
    for method, path, route in _ROUTES
]


def route_of(method: str, path: str) -> tuple[Route | None, str]:
    """How a request is read, and the route's name in metrics; None where nobody knows it."""
    method = "GET" if method == "HEAD" else method
    for known, pattern, template, route in _PATTERNS:
        if known == method and pattern.fullmatch(path):
            return route, template
    return None, "other"
