"""What the fits of image models' guards write and print in the end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from guard.commands.fit.output import print_json, print_judgement, print_written
from guard.fitting.files import write_report
from guard.reporting import values

if TYPE_CHECKING:
    from guard.data.concept import Concept
    from guard.fitting.prompts.rates import Calibrated


def finish(
    fit: Calibrated,
    concept: Concept,
    out: Path,
    took_s: float,
    *,
    as_json: bool,
    title: str = "held-out prompts",
    trials: Mapping[str, str] | None = None,
    quick: bool = False,
) -> None:
    """Write the artifact and its report, and print the figures: `title` is that of the calibration,
    `trials` has titles of those figures that are tables of trials."""
    from guard.fitting.images.report import as_json as report_of
    from guard.fitting.images.report import as_page, judged

    fit.artifact.save(out)
    line = judged(fit, concept, quick=quick)
    report = report_of(fit, line, took_s)
    page = write_report(out, report, as_page(fit, line, trials))
    if as_json:
        print_json(report, out, fit.artifact)
        return
    console, trials = Console(), trials or {}
    figures: dict[str, Any] = report["calibration"]
    if plain := {name: figure for name, figure in figures.items() if name not in trials}:
        console.print(values.table(title, plain))
    for name, heading in trials.items():
        console.print(_trials(heading, figures[name]))
    console.print(values.table("settings", report["settings"]))
    print_judgement(console, report)
    print_written(console, out, page)


def _trials(title: str, rows: list[dict[str, Any]]) -> Table:
    """One row per trial."""
    table = Table(*(name.replace("_", " ") for name in rows[0]), title=title)
    for row in rows:
        table.add_row(*(value for _, value in values.rows(row)))
    return table
