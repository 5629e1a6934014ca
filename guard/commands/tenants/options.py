"""What the commands about tenants share: options, opening the database, printing levels."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table
from rich.text import Text

from guard.audit import AuditLog
from guard.config.schema import load_config
from guard.errors import ConfigError
from guard.tenants.acts import noting
from guard.tenants.levels import Level, LevelSettings

ConfigFile = Annotated[
    Path, typer.Option("--config", "-c", help="The configuration, with a section tenants.")
]
CONFIG = Path("config.toml")
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        "-s",
        metavar="NAME=VALUE",
        help=f"A setting, with commas between several policies; may be repeated: "
        f"{', '.join(LevelSettings.model_fields)}.",
    ),
]
Unset = Annotated[
    list[str] | None,
    typer.Option("--unset", metavar="NAME", help="A setting to take back; may be repeated."),
]

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def duration(text: str) -> float:
    """Seconds of "90s", "15m", "24h" or "30d". Raises typer.BadParameter."""
    found = re.fullmatch(r"(\d{1,9})([smhd])", text)
    if found is None:
        raise typer.BadParameter(f"{text!r} is no duration: give one such as 90s, 15m, 24h or 30d")
    return float(found[1]) * _UNITS[found[2]]


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """The store of tenants of a configuration, whose changes go into its audit log. Raises
    GuardError."""
    from guard.tenants.directory import store_of

    config = load_config(path)
    if not config.tenants.is_configured:
        raise ConfigError([f'{path}: there is no database: add database = "..." to [tenants]'])
    log = config.server.audit_log
    with AuditLog(log) if log is not None else nullcontext() as audit:
        store = store_of(config, noting(audit))
        try:
            yield store
        finally:
            store.database.close()


def settings_of(texts: Sequence[str] | None) -> LevelSettings:
    """The settings that were given as NAME=VALUE. Raises typer.BadParameter."""
    return LevelSettings().changed(changes_of(texts or ()))


def changes_of(texts: Sequence[str], unset: Sequence[str] = ()) -> dict[str, Any]:
    """Settings to set, as NAME=VALUE, and None for those to take back.

    Raises typer.BadParameter.
    """
    strings: dict[str, str] = dict(text.partition("=")[::2] for text in texts)
    if unknown := [n for n in (*strings, *unset) if n not in LevelSettings.model_fields]:
        known = ", ".join(LevelSettings.model_fields)
        raise typer.BadParameter(f"there is no setting {unknown[0][:80]!r}: there is {known}")
    lists = {
        name: [part for part in strings.pop(name).split(",") if part]
        for name in ("policies", "required")
        if name in strings
    }
    try:
        LevelSettings.model_validate(lists)
        parsed = LevelSettings.model_validate_strings(strings)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        raise typer.BadParameter(f"{fault['loc'][0]}: {fault['msg']}") from None
    return {name: getattr(parsed, name) for name in strings} | lists | dict.fromkeys(unset)


def wanted_changes(texts: Sequence[str] | None, unset: Sequence[str] | None) -> dict[str, Any]:
    """See `changes_of`; there must be one."""
    changes = changes_of(texts or (), unset or ())
    if not changes:
        raise typer.BadParameter("there is nothing to change: give --set or --unset")
    return changes


def show(store: Any, levels: Sequence[Level], *, as_json: bool, key: str | None = None) -> None:
    """Print levels: a table, or JSON. A new `key` is printed by itself, for a script to read."""
    from guard.tenants.facts import facts_of

    facts = facts_of(store, levels)
    if as_json:
        shown: Any = facts
        if key is not None:
            shown = facts[0] | {"key": key}
        print(json.dumps(shown, indent=2))
        return
    if key is not None:
        print(key)
        Console(stderr=True).print("It is shown this once, and stored nowhere.", highlight=False)
        return
    table = Table("id", "name", "settings", "tokens this month", "state")
    for column in table.columns:
        column.overflow = "fold"
    for fact in facts:
        table.add_row(*map(Text, (fact["id"], fact["name"], _settings(fact), *_last(fact))))
    Console().print(table)


def _settings(fact: Mapping[str, Any]) -> str:
    parts = []
    for name in LevelSettings.model_fields:
        value = fact[name]
        if value in (None, []):
            continue
        parts.append(f"{name}={','.join(value) if isinstance(value, list) else value}")
    return "\n".join(parts)


def _last(fact: Mapping[str, Any]) -> tuple[str, str]:
    state = "revoked" if fact["revoked"] else "in force"
    if fact.get("role", "tenant") != "tenant":
        state += f", {fact['role']}"
    if fact.get("expires") and not fact["revoked"]:
        state += f", until {fact['expires']}"
    return str(fact["usage"]["tokens"]), state
