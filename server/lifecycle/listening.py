"""Taking an address before anything is loaded, and what is said of it."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

Host = Annotated[str | None, typer.Option(help="Address to listen on, in place of the file's.")]
Port = Annotated[
    int | None,
    typer.Option(min=0, max=65535, help="Port, in place of the file's; 0 takes a free one."),
]


def bind(host: str, port: int) -> socket.socket:
    """A bound socket, not yet listening; exits with 1 where the address cannot be had."""
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
    """Where it listens."""
    address, port = listener.getsockname()[:2]
    return f"http://{f'[{address}]' if ':' in address else address}:{port}"


def warn_if_open(listener: socket.socket, keys: Sequence[object]) -> None:
    """Say that whoever reaches the address may use it, where that is more than this machine."""
    address = listener.getsockname()[0]
    if not keys and not (address.startswith("127.") or address == "::1"):
        url = url_of(listener)
        typer.echo(f"warning: no [[keys]]: whoever reaches {url} may use it", err=True)


def say_ready(
    listener: socket.socket, what: dict[str, list[str]], text: str, *, as_json: bool
) -> None:
    """One line that requests are taken: `text`, or JSON with `what` is served."""
    host, port = listener.getsockname()[:2]
    if as_json:
        ready = {"event": "ready", "url": url_of(listener), "host": host, "port": port}
        typer.echo(json.dumps(ready | what | {"pid": os.getpid()}))
    else:
        typer.echo(text)
    sys.stdout.flush()
