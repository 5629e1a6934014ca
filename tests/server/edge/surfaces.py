"""A server and a proxy, of which the same is asked."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from starlette.types import Send

from guard.config.schema import load_config
from tests.server.live_server import live_server
from tests.server.proxy.stand import (
    Upstream,
    UpstreamRequest,
    chat_chunk,
    chat_completion,
    proxied,
    send_chunk,
    send_head,
    send_response,
    served,
)
from tests.server.screen_configs import screen_config, write_list

MODEL = '\n[[models]]\nname = "fake"\nsource = "fake"\n'


async def answer(request: UpstreamRequest, send: Send) -> None:
    """An OpenAI-compatible server with one model."""
    if request.method == "GET":
        await send_response(send, {"object": "list", "data": [{"id": "fake"}]})
    elif request.json.get("stream"):
        await send_head(send)
        await send_chunk(send, chat_chunk({"content": "Hello"}))
        await send_chunk(send, chat_chunk({}, end="stop"))
        await send_chunk(send, b"data: [DONE]\n\n", more=False)
    else:
        await send_response(send, chat_completion("Hello"))


@contextmanager
def surfaces(
    folder: Path, server: str = "", more: str = "", upstream: Upstream | None = None
) -> Iterator[dict[str, str]]:
    """The URLs of a server and a proxy with a policy that screens; `server` has lines of its
    table."""
    config = screen_config(source=write_list(folder), server=server) + MODEL + more
    (folder / "server.toml").write_text(config)
    with (
        live_server(config=load_config(folder / "server.toml")) as live,
        served(upstream or Upstream(answer)) as port,
        proxied(folder, config, port) as proxy,
    ):
        yield {"server": live.url, "proxy": proxy.url}


def raw_request(url: str, content: bytes, *, patience_s: float = 10.0) -> bytes:
    """What comes back for these bytes until the connection is closed."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=patience_s) as wire:
        wire.sendall(content)
        response = b""
        while received := wire.recv(65536):
            response += received
    return response
