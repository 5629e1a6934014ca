"""`guard keys`: make, list, change, rotate and revoke API keys."""

from __future__ import annotations

import time
from enum import StrEnum
from typing import Annotated

import typer

from guard.commands.tenants.changing import add_changing
from guard.commands.tenants.options import (
    CONFIG,
    AsJson,
    ConfigFile,
    Settings,
    duration,
    opened,
    settings_of,
    show,
)

app = typer.Typer(
    add_completion=False,
    help="Make, list, change, rotate and revoke the API keys.",
    no_args_is_help=True,
)


class RoleOption(StrEnum):
    """The roles, as an option."""

    tenant = "tenant"
    auditor = "auditor"
    admin = "admin"


@app.command(epilog="Example: guard keys new acme/research --name laptop --expires 90d")
def new(
    team: Annotated[
        str | None,
        typer.Argument(help="The key's team, as ORGANISATION/TEAM; none for another role."),
    ] = None,
    name: Annotated[str, typer.Option(help="What the key is for.")] = "key",
    role: Annotated[
        RoleOption,
        typer.Option(help="tenant asks models, admin changes what runs, auditor reads that."),
    ] = RoleOption.tenant,
    expires: Annotated[
        str | None, typer.Option(help="How long it is taken: 90s, 15m, 24h, 30d.")
    ] = None,
    settings: Settings = None,
    config: ConfigFile = CONFIG,
    as_json: AsJson = False,
) -> None:
    """Make an API key and print it; it is stored nowhere."""
    until = time.time() + duration(expires) if expires is not None else None
    wanted = settings_of(settings)
    with opened(config) as store:
        made, text = store.new_key(team, name, wanted, role=role.value, expires=until)
        show(store, [made], as_json=as_json, key=text)


@app.command("list", epilog="Example: guard keys list --team acme/research")
def list_keys(
    team: Annotated[str | None, typer.Option(help="Only the keys of this team.")] = None,
    config: ConfigFile = CONFIG,
    as_json: AsJson = False,
) -> None:
    """List keys, and the tokens that each has used this month; the keys themselves are unknown."""
    with opened(config) as store:
        show(store, store.every("key", team), as_json=as_json)


@app.command(epilog="Example: guard keys rotate 0123456789abcdef --overlap 24h")
def rotate(
    id: Annotated[str, typer.Argument(help="As `guard keys list` shows it.")],
    overlap: Annotated[
        str, typer.Option(help="How long the old key is taken too: 15m, 24h, 7d.")
    ] = "0s",
    config: ConfigFile = CONFIG,
    as_json: AsJson = False,
) -> None:
    """Replace a key by a new one of the same id, settings and budget, and print it."""
    overlap_s = duration(overlap)
    with opened(config) as store:
        rotated, text = store.rotate(id, overlap_s)
        show(store, [rotated], as_json=as_json, key=text)


add_changing(app, "key", example="0123456789abcdef")
