"""`guard proxy`: the sidecar as a command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from guard.config.proxy_schema import UpstreamConfig
from guard.config.schema import Config, load_config
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


@app.command(epilog="Example: guard proxy --upstream http://127.0.0.1:8000 --config config.toml")
def proxy(
    upstream: Annotated[
        list[str] | None,
        typer.Option(
            "--upstream", "-u", help="URL of an upstream, in place of the file's; may be repeated."
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="The configuration file.")
    ] = None,
    key_env: Annotated[
        str | None,
        typer.Option(help="Environment variable with the credential of --upstream."),
    ] = None,
    host: Host = None,
    port: Port = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Say that the proxy is ready in one line of JSON.")
    ] = False,
) -> None:
    """Guard an OpenAI-compatible server that runs elsewhere: clients change their base URL."""
    settings = load_config(config) if config is not None else Config()
    if upstream:
        settings = settings.model_copy(update={"upstreams": _upstream_configs(upstream, key_env)})
    listener = bind(host or settings.server.host, settings.server.port if port is None else port)
    warn_if_open(listener, settings)
    warn_if_unguarded(settings)

    # imported here, so that --help and the checks above do not wait for it
    from server.proxy.run import run_proxy

    def announce(upstreams: list[str]) -> None:
        text = f"in front of {', '.join(upstreams)} at {url_of(listener)}/v1  (Ctrl-C stops)"
        say_ready(listener, {"upstreams": upstreams}, text, as_json=as_json)

    run_proxy(settings, listener, announce)


def _upstream_configs(urls: list[str], key_env: str | None) -> tuple[UpstreamConfig, ...]:
    try:
        return tuple(
            UpstreamConfig(name=f"upstream-{number}", url=url, key_env=key_env)
            for number, url in enumerate(urls, 1)
        )
    except ValidationError as error:
        name, value = error.errors()[0]["loc"][0], error.errors()[0]["input"]
        option = "--upstream" if name == "url" else "--key-env"
        raise ConfigError(
            [f"{option}: {str(value)[:80]!r} is not valid: give {_EXPECTED[option]}"]
        ) from None


_EXPECTED = {
    "--upstream": "a URL such as http://127.0.0.1:8000, without user, query or fragment",
    "--key-env": "the name of an environment variable",
}
