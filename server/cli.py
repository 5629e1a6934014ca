"""`guard serve`: the server as a command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from guard.config.schema import load_config
from guard.errors import ConfigError
from server.lifecycle.listening import (
    Host,
    Port,
    bind,
    say_ready,
    url_of,
    warn_if_open,
    warn_if_unguarded,
)

app = typer.Typer(add_completion=False)


@app.command(epilog="Example: guard serve --config config.toml --port 8000")
def serve(
    config: Annotated[
        Path, typer.Option("--config", "-c", help="The configuration file.", show_default=True)
    ] = Path("config.toml"),
    host: Host = None,
    port: Port = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Say that the server is ready in one line of JSON.")
    ] = False,
) -> None:
    """Serve the configured models behind OpenAI's HTTP interface."""
    settings = load_config(config)
    if not settings.models:
        raise ConfigError([f"{config}: there is no model to serve: add [[models]]"])
    # Bound before the models are loaded, which takes a while: a port in use fails at once.
    listener = bind(host or settings.server.host, settings.server.port if port is None else port)
    warn_if_open(listener, settings)
    warn_if_unguarded(settings)

    # Imported here: --help and the checks above must not wait for torch.
    from server.lifecycle.run import run_server

    def announce(models: list[str]) -> None:
        text = f"serving {', '.join(models)} at {url_of(listener)}/v1  (Ctrl-C stops)"
        say_ready(listener, {"models": models}, text, as_json=as_json)

    run_server(settings, listener, announce)
