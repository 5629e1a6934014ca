"""`set` and `revoke`, which are the same for every level."""

from __future__ import annotations

from typing import Annotated

import typer

from guard.commands.tenants.options import (
    CONFIG,
    AsJson,
    ConfigFile,
    Settings,
    Unset,
    opened,
    show,
    wanted_changes,
)
from guard.tenants.levels import Kind

Identity = Annotated[str, typer.Argument(help="The id, as `list` shows it.")]


def add_changing(app: typer.Typer, kind: Kind, *, example: str, below: str = "") -> None:
    """Add both commands to those of a kind; `example` is an id, `below` what is revoked too."""
    command = f"guard {kind}s"
    article = "an" if kind == "organisation" else "a"

    @app.command(
        "set",
        epilog=f"Example: {command} set {example} -s requests_per_minute=600",
        help=f"Change settings of {article} {kind}; servers follow within a second.",
    )
    def set_level(
        id: Identity,
        settings: Settings = None,
        unset: Unset = None,
        config: ConfigFile = CONFIG,
        as_json: AsJson = False,
    ) -> None:
        changes = wanted_changes(settings, unset)
        with opened(config) as store:
            show(store, [store.change(kind, id, changes)], as_json=as_json)

    @app.command(
        epilog=f"Example: {command} revoke {example}",
        help=f"Take {article} {kind} out of use for good{below}; servers follow within a second.",
    )
    def revoke(id: Identity, config: ConfigFile = CONFIG, as_json: AsJson = False) -> None:
        with opened(config) as store:
            show(store, [store.revoke(kind, id)], as_json=as_json)
