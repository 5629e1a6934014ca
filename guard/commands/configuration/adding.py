"""`guard add`: put a guard into a configuration, and into one of its policies."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import tomlkit
import typer

from guard.commands.documents import read_document, replace_document
from guard.commands.fit.options import AsJson
from guard.commands.guards import artifacts_of
from guard.config.checks import NO_POLICY
from guard.errors import DataError

app = typer.Typer(add_completion=False)


@app.command(epilog="Example: guard add guards/frankenstein.toml --policy books")
def add(
    guard: Annotated[
        Path,
        typer.Argument(
            help="An artifact, the NAME.toml that a fit has written, or a list of patterns, which "
            "redacts answers."
        ),
    ],
    policy: Annotated[
        str, typer.Option(help="The policy that gets it; a new one where there is none yet.")
    ],
    config: Annotated[Path, typer.Option("--config", "-c", help="The configuration file.")] = Path(
        "config.toml"
    ),
    block: Annotated[
        bool,
        typer.Option(
            "--block",
            help="A list of patterns: block requests and answers that have one of them, in place "
            "of redacting answers.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Add a guard to a configuration and to a policy, and leave everything else as it is.

    Comments and order stay. The file is checked as a whole before it is replaced; where it would
    not hold, nothing changes. A server takes it at its next start.
    """
    if policy == NO_POLICY:
        raise DataError(f"policy {NO_POLICY!r} has no guards: name another one")
    is_list = _is_list(guard)
    if block and not is_list:
        raise DataError(f"--block is for a list of patterns, and {guard} is none: leave it out")
    paths = [guard.absolute()] if is_list else artifacts_of(guard)
    document = read_document(config)
    tables, key = ("patterns", "source") if is_list else ("guards", "artifact")
    added = _add_tables(document, tables, key, paths, config)
    is_new = _add_to_policy(
        document, [path.stem for path in paths], policy, config, _settings_of(guard)
    )
    if is_list and is_new:
        # one that the policy had acts as somebody has set
        _act_by_list(document, guard.stem, policy, block=block)
    replace_document(config, document)
    if as_json:
        print(json.dumps({"config": str(config), "policy": policy, "added": added}, indent=2))
        return
    print(
        f"{config}: policy {policy} has {', '.join(path.stem for path in paths)}"
        + ("" if added else " (all of them were known)")
    )


def _is_list(path: Path) -> bool:
    """Whether a file is a list of patterns. One that cannot be read is none: see `artifacts_of`."""
    if path.suffix != ".toml":
        return False
    try:
        found = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return "words" in found or "regex" in found


def _add_tables(
    document: Any, tables: str, key: str, paths: Sequence[Path], config: Path
) -> list[str]:
    """Append a table of `[[guards]]` or `[[patterns]]` for each file that has none, `key` being its
    place; the names of these."""
    there = document.get(tables)
    if there is None:
        there = document[tables] = tomlkit.aot()
    folder = config.absolute().parent
    known = {str(table.get("name")): str(table.get(key)) for table in there}
    added = []
    for path in paths:
        if path.stem in known:
            if (folder / known[path.stem]).resolve() != path.resolve():
                raise DataError(
                    f"{config}: has a guard {path.stem!r} already, {known[path.stem]}: rename the "
                    "file, or take that guard out"
                )
            continue
        table = tomlkit.table()
        table["name"] = path.stem
        table[key] = os.path.relpath(path, folder)
        if not there:
            table.trivia.indent = "\n"  # the later ones have an empty line before them anyhow
        there.append(table)
        added.append(path.stem)
    return added


def _act_by_list(document: Any, name: str, policy: str, *, block: bool) -> None:
    """Let the list `name` redact answers, or block both ways, whatever the policy does
    otherwise."""
    screen = document["policies"][policy].setdefault("screen", tomlkit.table())
    actions = screen.setdefault("actions", tomlkit.inline_table())
    actions.setdefault(name, "block" if block else "redact")
    if not block:
        screen.setdefault("looks", tomlkit.inline_table()).setdefault(name, ["response"])


def _settings_of(guard: Path) -> dict[str, str]:
    """How the policy that a fit has written acts, where it says so."""
    if guard.suffix != ".toml":
        return {}
    policies: dict[str, Any] = tomllib.loads(guard.read_text("utf-8")).get("policies", {})
    policy: dict[str, Any] = next(iter(policies.values()), {})
    return {key: str(policy[key]) for key in ("action", "message") if key in policy}


def _add_to_policy(
    document: Any, names: Sequence[str], policy: str, config: Path, settings: Mapping[str, str]
) -> bool:
    """Add guards to a policy, and say whether it had not all of them; a new policy acts by
    `settings`. Raises DataError where a policy that is there acts in another way."""
    policies = document.get("policies")
    if policies is None:
        policies = document["policies"] = tomlkit.table(is_super_table=True)
    if policy not in policies:
        table = tomlkit.table()
        table.trivia.indent = "\n"
        policies[policy] = table
        policies[policy].update(settings)
    elif any(policies[policy].get(key) != value for key, value in settings.items()):
        raise DataError(
            f"{config}: policy {policy!r} is there and does not answer as the guards' own file "
            "says: name a new policy, or add the single artifacts"
        )
    guards = policies[policy].get("guards")
    if guards is None:
        guards = policies[policy]["guards"] = tomlkit.array()
    if not isinstance(guards, list):
        raise DataError(f"{config}: policies.{policy}.guards is no list")
    missing = [name for name in names if name not in guards]
    for name in missing:
        guards.append(name)
    return bool(missing)
