"""What `guard eval images`, `bare` and `m-erasure` write and print."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from datetime import date
from typing import TYPE_CHECKING, Any, Protocol

from rich.console import Console
from rich.table import Table

from guard.commands.eval.options import SuiteOptions

if TYPE_CHECKING:
    from guard.evaluation.images.judge import Judge
    from guard.evaluation.images.suite import ImageSuite
    from guard.evaluation.images.targets import Figure
    from guard.reporting.page import Grid


class Report(Protocol):
    """The report of a suite."""

    figures: list[Figure]
    methods: tuple[str, ...]

    def as_json(self, about: Mapping[str, Any]) -> dict[str, Any]: ...

    def page(self, title: str, subtitle: str) -> str: ...

    def table(self) -> Grid: ...


def about(options: SuiteOptions, suite: ImageSuite, judge: Judge, **more: object) -> dict[str, Any]:
    """The facts about a run that head its report."""
    return {
        "suite": options.name,
        "model": suite.model,
        "steps": suite.steps,
        "guidance": suite.guidance,
        "pictures": suite.images,
        "judge": judge.digest,
        "date": date.today().isoformat(),
        "machine": platform.machine(),
        **more,
    }


def write_report(
    options: SuiteOptions,
    suite: ImageSuite,
    report: Report,
    facts: Mapping[str, Any],
    *,
    ending: str,
    title: str,
) -> None:
    """Write SUITE.ENDING.json and SUITE.ENDING.html, and print the figures."""
    content = written_report(options, suite, report, facts, ending=ending, title=title)
    if options.as_json:
        print(json.dumps(content, indent=2, ensure_ascii=False))


def written_report(
    options: SuiteOptions,
    suite: ImageSuite,
    report: Report,
    facts: Mapping[str, Any],
    *,
    ending: str,
    title: str,
) -> dict[str, Any]:
    """The same but for printing JSON, which is returned: a command may have several reports."""
    # imported here since only the extra `fit` has what it needs
    from guard.reporting.page import write_text

    content = report.as_json(facts)
    base = options.folder / f"{options.name}.{ending}"
    write_text(
        base.with_name(f"{base.name}.json"), json.dumps(content, indent=1, ensure_ascii=False)
    )
    subtitle = (
        f"Model {suite.model}, {suite.steps} steps, guidance {suite.guidance:g}, "
        f"judged by {suite.judge.name}, {facts['date']}"
    )
    page = base.with_name(f"{base.name}.html")
    write_text(page, report.page(f"{title}: {options.name}", subtitle))
    if options.as_json:
        return content
    console = Console()
    console.print(_figures(report.figures))
    if report.methods:
        console.print(_methods(report.table()))
    console.print(f"wrote {page}", markup=False, highlight=False, soft_wrap=True)
    return content


def _figures(figures: Sequence[Figure]) -> Table:
    table = Table("figure", "value (95 % interval)", "target", "")
    for figure in figures:
        reached = {True: "reached", False: "not reached", None: ""}[figure.reached]
        table.add_row(figure.name, figure.value, figure.target, reached)
    return table


def _methods(grid: Grid) -> Table:
    table = Table(*grid.columns, title=grid.title)
    for row in grid.rows:
        table.add_row(*(cell.split(" (")[0] for cell in row))
    return table
