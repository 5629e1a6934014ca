"""`guard doctor`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from guard.commands.doctor.finding import Finding
from guard.commands.doctor.machine import machine_findings
from guard.commands.doctor.models import added_findings, served_findings
from guard.commands.doctor.packages import extra_findings, extras, plugin_finding
from guard.commands.tables import add_row, new_table
from guard.config.schema import load_config
from guard.errors import ConfigError, DataError

app = typer.Typer(add_completion=False)


@app.command(epilog="Example: guard doctor --config config.toml --for serve")
def doctor(
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", help="A configuration whose models are looked at."),
    ] = None,
    needed: Annotated[
        str | None, typer.Option("--for", help="The extra that must be complete, as serve.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Print what is installed, what fits this machine, and what is missing.

    Loads no model. Exit status 1 where something is missing that a configuration or --for needs.
    """
    if needed is not None and needed not in extras():
        raise DataError(f"--for {needed}: no such extra: give one of {', '.join(extras())}")
    findings = list(_findings(config, needed))
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        table = new_table("inference-guard", "what", "", "found", "what to do")
        for finding in findings:
            add_row(table, finding.subject, finding.status, finding.found, finding.remedy)
        Console().print(table)
    if any(finding.status == "missing" for finding in findings):
        raise typer.Exit(1)


def _findings(config: Path | None, needed: str | None) -> Iterator[Finding]:
    yield from machine_findings()
    yield from extra_findings(needed)
    plugin = plugin_finding()
    if plugin is not None:
        yield plugin
    if config is None:
        yield from added_findings()
        return
    try:
        settings = load_config(config)
    except ConfigError as error:
        for problem in error.problems:
            yield Finding(f"file {config}", "missing", problem, f"guard check {config}")
        return
    yield Finding(f"file {config}", "ok", "its entries hold; `guard check` tries its guards")
    yield from served_findings(settings.models)
