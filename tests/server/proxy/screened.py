"""A proxy under one policy that screens text, and what is asked of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from starlette.types import Send

from tests.server.proxy.stand import (
    Proxy,
    Upstream,
    UpstreamRequest,
    chat_completion,
    proxied,
    send_chunk,
    send_head,
    send_response,
    served,
)
from tests.server.screen_configs import screen_config, write_list

BODY = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}


@contextmanager
def screened(
    folder: Path, upstream: Upstream, action: str = "block", screen: str = ""
) -> Iterator[Proxy]:
    """A proxy under one policy, in front of `upstream`."""
    text = screen_config(action, screen, source=write_list(folder))
    with served(upstream) as port, proxied(folder, text, port) as proxy:
        yield proxy


def answering(text: str) -> Upstream:
    """An upstream whose chat completions are `text`."""

    async def respond(request: UpstreamRequest, send: Send) -> None:
        await send_response(send, chat_completion(text))

    return Upstream(respond)


def streaming(*events: bytes, done: bool = True) -> Upstream:
    """An upstream that streams these events, and `[DONE]`."""

    async def respond(request: UpstreamRequest, send: Send) -> None:
        await send_head(send)
        for event in events:
            await send_chunk(send, event)
        await send_chunk(send, b"data: [DONE]\n\n" if done else b"", more=False)

    return Upstream(respond)


def post(proxy: Proxy, **options: Any) -> httpx.Response:
    """A chat completion of "hello"."""
    body = {**BODY, **options}
    return httpx.post(f"{proxy.url}/v1/chat/completions", json=body, timeout=20)


def ask(proxy: Proxy, text: str, **options: Any) -> httpx.Response:
    """A chat completion of `text`."""
    return post(proxy, **{"messages": [{"role": "user", "content": text}], **options})


def post_raw(
    url: str, content: bytes, media: str = "application/json", **headers: str
) -> httpx.Response:
    """A chat completion whose body is `content`."""
    headers = {"content-type": media, **headers}
    return httpx.post(f"{url}/v1/chat/completions", content=content, headers=headers, timeout=20)


def read_stream(response: httpx.Response) -> tuple[str, list[dict[str, Any]], bool]:
    """The text of a streamed chat, its events, and whether `[DONE]` ends it."""
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    events = [json.loads(line) for line in lines if line != "[DONE]"]
    deltas = [c["delta"].get("content") or "" for e in events for c in e.get("choices", [])]
    return "".join(deltas), events, lines[-1] == "[DONE]"
