"""`guard teams`: make, list, change and revoke the teams of organisations."""

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
    help="Make, list, change and revoke the teams.",
    no_args_is_help=True,
)


@app.command(epilog="Example: guard teams new acme/research -s tokens_per_month=5000000")
def new(
    team: Annotated[str, typer.Argument(help="The team, as ORGANISATION/TEAM.")],
    settings: Settings = None,
    config: ConfigFile = CONFIG,
    as_json: AsJson = False,
) -> None:
    """Make a team of an organisation."""
    organisation, slash, name = team.partition("/")
    if not slash:
        raise typer.BadParameter(f"{team!r} is no team: give ORGANISATION/TEAM")
    wanted = settings_of(settings)
    with opened(config) as store:
        show(store, [store.new_team(organisation, name, wanted)], as_json=as_json)


@app.command("list", epilog="Example: guard teams list --organisation acme")
def list_teams(
    organisation: Annotated[
        str | None, typer.Option(help="Only the teams of this organisation.")
    ] = None,
    config: ConfigFile = CONFIG,
    as_json: AsJson = False,
) -> None:
    """List teams, and the tokens that each has used this month."""
    with opened(config) as store:
        show(store, store.every("team", organisation), as_json=as_json)


add_changing(app, "team", example="acme/research", below=", with all its keys")
