"""A server over HTTP with a text service on a tiny model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import openai
import pytest

from server.app import create_app
from server.lifecycle.graceful import GracefulServer
from tests.server.live_server import HttpServer, serve_app
from tests.server.tiny_text_service import RunningText

CHAT = "/v1/chat/completions"
CAPACITY, QUEUE = 8, 64


@dataclass
class TextServer(HttpServer):
    server: GracefulServer
    running: RunningText

    def chat(self, text: str = "hello", policy: str = "none", **options: Any) -> Any:
        options = {"max_tokens": 12, "temperature": 0, "model": "tiny"} | options
        return self.client().chat.completions.create(
            messages=[{"role": "user", "content": text}],
            extra_body={"guard": {"policy": policy}},
            **options,
        )

    def body(self, text: str = "hello", policy: str = "none", **options: Any) -> dict[str, Any]:
        messages = [{"role": "user", "content": text}]
        body = {"model": "tiny", "messages": messages, "guard": {"policy": policy}}
        return body | {"max_tokens": 12, "temperature": 0} | options


@contextmanager
def serve_text(running: RunningText, *, grace_s: float = 10.0) -> Iterator[TextServer]:
    services = {"tiny": running.service}
    app = create_app(running.config, services, metrics=running.metrics)
    with serve_app(app, services, grace_s=grace_s) as (url, server):
        try:
            yield TextServer(url, server, running)
        finally:
            running.engine.go.set()


def text_of(answer: Any) -> str:
    return str(answer.choices[0].message.content)


def failure(call: Callable[[], Any]) -> openai.APIStatusError:
    """The error of a call that must fail, in OpenAI's envelope."""
    with pytest.raises(openai.APIStatusError) as caught:
        call()
    error = caught.value
    assert set(error.response.json()["error"]) == {"message", "type", "param", "code"}
    assert error.response.headers["X-Request-Id"]
    return error
