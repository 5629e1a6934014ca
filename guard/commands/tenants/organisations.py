"""`guard organisations`: make, list, change and revoke organisations."""

from __future__ import annotations

from typing import Annotated

import typer

from guard.commands.tenants.changing import add_changing
from guard.commands.tenants.options import (
    CONFIG,
    AsJson,
    ConfigFile,
    Settings,
    opened,
    settings_of,
    show,
)

app = typer.Typer(
    add_completion=False,
    help="Make, list, change and revoke the organisations.",
    no_args_is_help=True,
)


@app.command(epilog="Example: guard organisations new acme -s required=no-secrets")
def new(
    name: Annotated[str, typer.Argument(help="Letters, digits and . _ -")],
    settings: Settings = None,
    config: ConfigFile = CONFIG,
    as_json: AsJson = False,
) -> None:
    """Make an organisation."""
    wanted = settings_of(settings)
    with opened(config) as store:
        show(store, [store.new_organisation(name, wanted)], as_json=as_json)


@app.command("list", epilog="Example: guard organisations list")
def list_organisations(config: ConfigFile = CONFIG, as_json: AsJson = False) -> None:
    """List organisations, and the tokens that each has used this month."""
    with opened(config) as store:
        show(store, store.every("organisation"), as_json=as_json)


add_changing(app, "organisation", example="acme", below=", with all its teams and keys")
