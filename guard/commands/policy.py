"""`guard policy`: the policies in force and their versions; what a change would have done."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import typer
from rich.console import Console
from rich.markup import escape

from guard.commands.tables import add_row, new_table
from guard.config.schema import read_toml
from guard.errors import ConfigError, GuardError, InvalidPolicy, ReplayUnavailable

if TYPE_CHECKING:
    from guard.policies.opened import OpenedPolicies
    from guard.policies.versions import Settings, Version

app = typer.Typer(
    add_completion=False,
    help="Show, change, compare, roll back and replay policies; servers follow within a second.",
    no_args_is_help=True,
)
Name = Annotated[str, typer.Argument(help="The policy's name.", metavar="NAME")]
ConfigFile = Annotated[
    Path, typer.Option("--config", "-c", help="The configuration, with a section live_policies.")
]
CONFIG = Path("config.toml")
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Why = Annotated[str, typer.Option(help="Why; it is kept with the version.")]


def _opened(path: Path, *, changing: bool = False) -> AbstractContextManager[OpenedPolicies]:
    # imported here: --help must not wait for the database's library
    from guard.policies.opened import opened_policies

    return opened_policies(path, changing=changing)


@app.command("list", epilog="Example: guard policy list")
def list_policies(config: ConfigFile = CONFIG, as_json: AsJson = False) -> None:
    """List the policies in force, each with its last change."""
    with _opened(config) as opened:
        current = [each for each in opened.current().values() if each.settings is not None]
    _print_versions(current, current, as_json=as_json)


@app.command(epilog="Example: guard policy show strict --version 2")
def show(
    name: Name,
    version: Annotated[int | None, typer.Option(help="A number; else the one in force.")] = None,
    config: ConfigFile = CONFIG,
) -> None:
    """Print a policy, as JSON that `guard policy put` takes."""
    with _opened(config) as opened:
        found = opened.version(name, version)
    print(json.dumps(found.settings, indent=2))


@app.command(epilog="Example: guard policy versions strict")
def versions(
    name: Name,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many.")] = 20,
    config: ConfigFile = CONFIG,
    as_json: AsJson = False,
) -> None:
    """List the versions of a policy, the newest first: who has changed it, when and why."""
    with _opened(config) as opened:
        found = opened.store.versions(name, limit=limit)
        if not found:
            opened.version(name, None)
        current = [opened.current()[name]]
    _print_versions(found, current, as_json=as_json)


@app.command(epilog='Example: guard policy put strict strict.toml --why "too many false alarms"')
def put(
    name: Name,
    file: Annotated[
        Path, typer.Argument(help="TOML or JSON: the keys of [policies.NAME], or that table.")
    ],
    why: Why = "",
    config: ConfigFile = CONFIG,
    as_json: AsJson = False,
) -> None:
    """Change a policy, or make one."""
    settings = _settings_in(file, name)
    with _opened(config, changing=True) as opened:
        _print_change(opened.change(name, "put", settings, why), as_json=as_json)


@app.command(epilog="Example: guard policy delete strict")
def delete(name: Name, why: Why = "", config: ConfigFile = CONFIG, as_json: AsJson = False) -> None:
    """Remove a policy that nothing names any more; its versions stay."""
    with _opened(config, changing=True) as opened:
        _print_change(opened.change(name, "delete", None, why), as_json=as_json)


@app.command(epilog="Example: guard policy rollback strict 2")
def rollback(
    name: Name,
    version: Annotated[int, typer.Argument(help="The number of the version.")],
    why: Why = "",
    config: ConfigFile = CONFIG,
    as_json: AsJson = False,
) -> None:
    """Put an earlier version in force again, as a new version."""
    with _opened(config, changing=True) as opened:
        settings = opened.version(name, version).settings
        if settings is None:
            raise InvalidPolicy(f"in version {version} the policy was removed: delete it instead")
        _print_change(opened.change(name, "rollback", settings, why), as_json=as_json)


@app.command(epilog="Example: guard policy diff strict 2 3")
def diff(
    name: Name,
    before: Annotated[
        int | None, typer.Argument(help="A version; left out, the one before the other.")
    ] = None,
    after: Annotated[
        int | None, typer.Argument(help="A version; left out, the one in force.")
    ] = None,
    config: ConfigFile = CONFIG,
    as_json: AsJson = False,
) -> None:
    """Print what differs between two versions of a policy."""
    from guard.policies.versions import difference

    with _opened(config) as opened:
        new = opened.version(name, after)
        number = before or new.number - 1
        old = opened.version(name, number).settings if number else None
        found = difference(old, new.settings, opened.config())
    if as_json:
        print(json.dumps({"changes": list(found.changes), "weaker": found.weaker}, indent=2))
        return
    console = Console(highlight=False)
    for change in found.changes:
        before_text, after_text = (json.dumps(change[key]) for key in ("before", "after"))
        console.print(escape(f"{change['field']}: {before_text} -> {after_text}"))
    if found.weaker:
        console.print("The second does not do all that the first does.")


@app.command(epilog="Example: guard policy replay strict.toml --policy strict --last 1000")
def replay(
    new: Annotated[
        str, typer.Argument(help="A file as `guard policy put` takes it, or a policy in force.")
    ],
    policy: Annotated[
        str | None,
        typer.Option(help="The policy whose requests are decided again; else that of NEW's name."),
    ] = None,
    last: Annotated[int, typer.Option(min=1, max=10_000, help="How many requests.")] = 1000,
    url: Annotated[
        str | None,
        typer.Option(help="Ask this server, which also reads the texts that it has kept."),
    ] = None,
    key_env: Annotated[
        str, typer.Option(help="Environment variable with an administrator's key for --url.")
    ] = "GUARD_ADMIN_KEY",
    config: ConfigFile = CONFIG,
    as_json: AsJson = False,
) -> None:
    """Say which of the last requests would be decided otherwise under NEW; nothing is changed."""
    name = policy or Path(new).stem
    settings: Mapping[str, Any] | None = None
    if Path(new).suffix in {".toml", ".json"}:
        settings = _settings_in(Path(new), name)
    if url is not None:
        if settings is None:
            raise typer.BadParameter("with --url, NEW is a file")
        found = _asked(url, key_env, name, {"settings": settings, "last": last})
    else:
        with _opened(config) as opened:
            if settings is None:
                settings = opened.version(new, None).settings
            assert settings is not None
            found = _replayed(opened, name, settings, last)
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        _print_replay(found)


def _replayed(opened: OpenedPolicies, name: str, settings: Settings, last: int) -> dict[str, Any]:
    from guard.plans.screens import TextPlans
    from guard.policies.changing import checked_change
    from guard.policies.decisions import Decisions
    from guard.policies.opened import BY
    from guard.policies.readings import same_since
    from guard.policies.recorded import last_recorded
    from guard.policies.replay import replay
    from guard.policies.versions import Change

    started = time.perf_counter()
    before, log = opened.config(), opened.file.config.server.audit_log
    if log is None:
        raise ReplayUnavailable(
            "nothing is recorded that could be replayed: add audit_log to [server]"
        )
    change = Change(name, "put", settings, BY)
    after, _ = checked_change(opened.file, opened.current(), change)
    requests = last_recorded(log, last, name)
    earlier = Decisions(before, TextPlans(before))
    names = {request.policy for request in requests}
    since = same_since(opened.store, before.policies, names)
    later = earlier.under(after)
    result = replay(requests, name, earlier, later, show=100, since=since)
    result.elapsed_ms = 1000 * (time.perf_counter() - started)
    return result.as_dict()


def _asked(url: str, key_env: str, name: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """The replay of a running server. Raises GuardError."""
    import httpx

    if not (key := os.environ.get(key_env)):
        raise GuardError(f"the environment variable {key_env} is empty: put an API key into it")
    headers = {"Authorization": f"Bearer {key}"}
    address = f"{url.rstrip('/').removesuffix('/v1')}/guard/v1/policies/{quote(name)}/replay"
    try:
        answer = httpx.post(address, json=body, headers=headers, timeout=60)
        found: dict[str, Any] = answer.json()
        if answer.status_code != 200:
            raise GuardError(str(found["error"]["message"]))
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, LookupError, TypeError) as error:
        raise GuardError(f"{url} has not answered as a server of policies: {error}") from error
    return found


def _settings_in(path: Path, name: str) -> dict[str, Any]:
    """The settings in a file. Raises ConfigError."""
    if path.suffix == ".json":
        try:
            data = json.loads(path.read_bytes())
        except (OSError, ValueError) as error:
            raise ConfigError([f"{path}: cannot be read: {error}"]) from None
    else:
        data, _ = read_toml(path)
    if not isinstance(data, dict):
        raise ConfigError([f"{path}: is no table: give the keys of [policies.{name}]"])
    policies = data.get("policies")
    if policies is None:
        return data
    if not isinstance(policies, dict) or not isinstance(policies.get(name), dict):
        raise ConfigError([f"{path}: has no [policies.{name}]: add it, or give its keys alone"])
    return dict(policies[name])


def _print_versions(found: Sequence[Version], current: Sequence[Version], *, as_json: bool) -> None:
    numbers = {(each.change.policy, each.number) for each in current}
    facts = [each.as_dict(current=(each.change.policy, each.number) in numbers) for each in found]
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    table = new_table("", "policy", "version", "what", "by", "when", "why")
    for fact in facts:
        mark = " *" if fact["current"] else ""
        number = f"{fact['version']}{mark}"
        add_row(table, fact["policy"], number, *(fact[k] for k in ("act", "by", "time", "why")))
    Console().print(table)


def _print_change(version: Version, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(version.as_dict(current=True), indent=2))
    else:
        print(f"{version.change.policy}: version {version.number}")


def _print_replay(found: Mapping[str, Any]) -> None:
    console = Console(highlight=False)
    console.print(
        f"{found['read']} requests: {found['changed']} would be decided otherwise, "
        f"{found['unchanged']} as they were, {found['not_replayed']} cannot be said "
        f"({found['elapsed_ms']:.0f} ms)"
    )
    for reason in found["reasons"]:
        console.print(escape(f"  {reason['count']}: {reason['reason']}"))
    for change in found["transitions"]:
        console.print(f"  {change['from']} -> {change['to']}: {change['count']}")
    for request in found["requests"][:10]:
        fired = [g["guard"] for g in request["guards"] if g["after"] and g["after"]["fired"]]
        by = f" ({', '.join(fired)})" if fired else ""
        console.print(escape(f"  {request['time']} {request['request_id']}: {request['to']}{by}"))
    if not found["read"]:
        print(
            f"note: no request under the policy {found['policy']!r} is recorded: --policy names "
            "the one whose requests are decided again",
            file=sys.stderr,
        )
