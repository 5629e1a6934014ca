"""`guard serve`: the server as a command."""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path
from typing import Annotated

import typer

from guard.config import load_config

app = typer.Typer(add_completion=False)


@app.command(epilog="Example: guard serve --config config.toml --port 8000")
def serve(
    config: Annotated[
        Path, typer.Option("--config", "-c", help="The configuration file.", show_default=True)
    ] = Path("config.toml"),
    host: Annotated[
        str | None, typer.Option(help="Address to listen on, in place of the file's.")
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="Port, in place of the file's; 0 takes a free one."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Say that the server is ready in one line of JSON.")
    ] = False,
) -> None:
    """Serve the configured models behind OpenAI's HTTP interface."""
    settings = load_config(config)
    # Taken before the models are loaded, which takes a while: a port in use is known at once.
    listener = _bind(host or settings.server.host, settings.server.port if port is None else port)
    address, bound_port = listener.getsockname()[:2]
    url = f"http://{f'[{address}]' if ':' in address else address}:{bound_port}"
    if not settings.keys and not _is_loopback(address):
        typer.echo(f"warning: no [[keys]]: whoever reaches {url} may use it", err=True)

    # Imported here, so that --help and the checks above do not wait for torch.
    from server.run import run_server

    def announce(models: list[str]) -> None:
        if as_json:
            ready = {"event": "ready", "url": url, "host": address, "port": bound_port}
            typer.echo(json.dumps(ready | {"models": models, "pid": os.getpid()}))
        else:
            typer.echo(f"serving {', '.join(models)} at {url}/v1  (Ctrl-C stops)")
        sys.stdout.flush()

    run_server(settings, listener, announce)


def _bind(host: str, port: int) -> socket.socket:
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


def _is_loopback(address: str) -> bool:
    return address.startswith("127.") or address == "::1"
