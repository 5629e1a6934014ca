"""Binding the address before models are loaded, and the lines printed about it."""

from __future__ import annotations

import json
import os
import socket
import sys
from typing import Annotated

import typer

from guard.config.schema import Config

Host = Annotated[str | None, typer.Option(help="Address to listen on, in place of the file's.")]
Port = Annotated[
    int | None,
    typer.Option(min=0, max=65535, help="Port, in place of the file's; 0 takes a free one."),
]


def bind(host: str, port: int) -> socket.socket:
    """A bound socket, not yet listening. Exits with 1 where the address cannot be bound."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, proto)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        typer.echo(f"error: cannot listen on {host}:{port}: {error.strerror or error}", err=True)
        raise typer.Exit(1) from None
    return listener


def url_of(listener: socket.socket) -> str:
    """The URL of the socket's address."""
    address, port = listener.getsockname()[:2]
    return f"http://{f'[{address}]' if ':' in address else address}:{port}"


def warn_if_open(listener: socket.socket, config: Config) -> None:
    """Warn on stderr where a server without keys listens beyond this machine."""
    address = listener.getsockname()[0]
    is_open = not config.keys and not config.tenants.is_configured
    if is_open and not (address.startswith("127.") or address == "::1"):
        url = url_of(listener)
        typer.echo(
            f"warning: no [[keys]] and no [tenants]: anybody who reaches {url} can use it", err=True
        )


def warn_if_unguarded(config: Config) -> None:
    """Warn on stderr where no policy of the configuration has guards, and erasures bring none."""
    guarded = any(policy.guards for policy in config.policies.values())
    if not guarded and config.erasures.folder is None:
        typer.echo("warning: no policy has guards: every request passes unguarded", err=True)


def say_ready(
    listener: socket.socket, served: dict[str, list[str]], text: str, *, as_json: bool
) -> None:
    """Print one line once requests are accepted: `text`, or JSON with the names in `served`."""
    host, port = listener.getsockname()[:2]
    if as_json:
        ready = {"event": "ready", "url": url_of(listener), "host": host, "port": port}
        typer.echo(json.dumps(ready | served | {"pid": os.getpid()}))
    else:
        typer.echo(text)
    sys.stdout.flush()
