"""`guard chat`: the command."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from server.chat.client import ChatClient
from server.chat.conversation import Conversation
from server.chat.local import config_for, local_server
from server.chat.screen import Screen
from server.chat.session import Session

app = typer.Typer(add_completion=False)

_PROMPT = "> "


@app.command(epilog="Example: guard chat smollm2 --policy harry-potter")
def chat(
    model: Annotated[
        str,
        typer.Argument(
            help="A model of the configuration, an added model, a directory or a hub name; with "
            "--url one of that server."
        ),
    ],
    config: Annotated[
        Path | None,
        typer.Option(
            "--config", "-c", help="The configuration file; config.toml where it has the model."
        ),
    ] = None,
    url: Annotated[
        str | None, typer.Option(help="Chat with a running server in place of a model here.")
    ] = None,
    api_key: Annotated[
        str | None, typer.Option(envvar="GUARD_API_KEY", help="The key of that server.")
    ] = None,
    policy: Annotated[
        str | None, typer.Option(help="Ask under this policy; the default one if left out.")
    ] = None,
    system: Annotated[str, typer.Option(help="The system prompt.")] = "",
    temperature: Annotated[
        float,
        typer.Option(
            min=0, max=2, help="0: the likeliest words, so that /bare differs by the guards alone."
        ),
    ] = 0.0,
) -> None:
    """Chat with a model, with the verdict of its guards below each answer.

    A line is a question, or a command: /help names them. Lines that are piped in are answered one
    after the other; the exit status is 1 where one of them failed.
    """
    screen = Screen(Console(emoji=False), Console(stderr=True, emoji=False))
    with _client(model, config, url, api_key, screen) as (client, name):
        session = Session(
            client, Conversation(name, system=system, temperature=temperature), screen
        )
        if policy is not None:
            session.choose_policy(policy)
        if sys.stdin.isatty():
            # a shell that starts commands in the background has them ignore Ctrl-C
            signal.signal(signal.SIGINT, signal.default_int_handler)
            screen.note("/help names the commands; Ctrl-D leaves")
            session.run(_typed())
            return
        session.run(sys.stdin)
    if screen.failed:
        raise typer.Exit(1)


@contextmanager
def _client(
    model: str, config: Path | None, url: str | None, key: str | None, screen: Screen
) -> Iterator[tuple[ChatClient, str]]:
    """A client, and the model's name on its server."""
    if url is not None:
        if config is not None:
            raise typer.BadParameter("a running server has its own: leave --config or --url out")
        client = ChatClient(url, key)
        try:
            client.require_model(model)
            yield client, model
        finally:
            client.close()
        return
    settings, name = config_for(model, config)
    screen.note(f"loading {model}")
    with local_server(settings) as client:
        yield client, name


def _typed() -> Iterator[str]:
    """The lines that are typed until Ctrl-D; Ctrl-C takes back the one that is being typed."""
    with suppress(ImportError):
        import readline  # noqa: F401  (lines can be edited, and earlier ones come back)
    while True:
        try:
            yield input(_PROMPT)
        except KeyboardInterrupt:
            print()
        except EOFError:
            print()
            return
