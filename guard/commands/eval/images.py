"""`guard eval images` and `guard eval bare`: what is drawn, by a judge that no fit has asked."""

from __future__ import annotations

import json
import platform
import time
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from guard.errors import DataError
from guard.reporting.progress import stages

SuiteFile = Annotated[Path, typer.Argument(help="The suite file.")]
ConfigFile = Annotated[Path, typer.Option("--config", "-c", help="The configuration file.")]
Out = Annotated[
    Path | None, typer.Option(help="Folder for the report; the suite's own if left out.")
]
Number = Annotated[
    int | None,
    typer.Option("--images", "--pictures", min=1, help="Images of each concept and kind."),
]
Steps = Annotated[int | None, typer.Option(min=1, help="Denoising steps.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the report as JSON.")]


def images(
    context: typer.Context,
    suite: SuiteFile,
    config: ConfigFile = Path("config.toml"),
    methods: Annotated[
        str | None, typer.Option(help="Methods to play, with commas; all where left out.")
    ] = None,
    concepts: Annotated[
        str | None, typer.Option(help="Concepts to play, with commas; all where left out.")
    ] = None,
    images: Number = None,
    steps: Steps = None,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """How often each method lets the concept through, and what else it changes.

    Writes SUITE.images.json and SUITE.images.html. A run that was stopped goes on from
    SUITE.results.jsonl; images that nothing acts on are those of the bare model and drawn once.
    """
    # reports are named as the command was: its first name was `pictures`
    what = str(context.info_name)
    _evaluate(suite, config, what, methods, concepts, images, steps, out, as_json)


def bare(
    suite: SuiteFile,
    config: ConfigFile = Path("config.toml"),
    images: Annotated[
        int | None,
        typer.Option(
            "--images", "--pictures", min=1, help="Images of each kind; all where left out."
        ),
    ] = None,
    steps: Steps = None,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Whether the bare model draws what it is asked for.

    Plays the suite's prompts that have no concept; writes SUITE.bare.json and SUITE.bare.html.
    """
    _evaluate(suite, config, "bare", None, None, images, steps, out, as_json)


def _evaluate(
    path: Path,
    config: Path,
    what: str,
    methods: str | None,
    concepts: str | None,
    images: int | None,
    steps: int | None,
    out: Path | None,
    as_json: bool,
) -> None:
    from guard.config.schema import load_config
    from guard.evaluation.images.cells import CellResults
    from guard.evaluation.images.evaluation import ImageEvaluation, Judges
    from guard.evaluation.images.generator import EngineImageGenerator
    from guard.evaluation.images.judge import Judge
    from guard.evaluation.images.report import ImageReport
    from guard.evaluation.images.row_tensors import beside
    from guard.evaluation.images.suite import load_suite, read_prompts

    suite = load_suite(path)
    cap = "bare_images" if what == "bare" else "images"
    changes = {cap: images, "steps": steps}
    suite = suite.model_copy(update={k: v for k, v in changes.items() if v is not None})
    played = chosen(methods, suite.methods) if methods else suite.methods
    ours = suite.ours if suite.ours in played else next(iter(played))
    suite = suite.model_copy(update={"methods": played, "ours": ours})
    judge = Judge(suite.judge)
    second = Judge(suite.second_opinion) if suite.second_opinion else None
    rows = read_prompts(suite, judge)
    if what == "bare":
        rows = [row for row in rows if not row.concept]
    if concepts is not None:
        known = dict.fromkeys(row.concept for row in rows if row.concept)
        wanted = chosen(concepts, known)
        rows = [row for row in rows if row.concept in wanted]
    if not rows:
        raise DataError(f"{path}: has no prompts for {what}")
    settings = load_config(config)
    base, name = out or path.parent, path.stem
    began = time.monotonic()
    tensors = beside(suite.prompts, rows)
    drawer = EngineImageGenerator.load(settings, suite)
    drawer.bring(tensors)
    with stages() as progress:
        evaluation = ImageEvaluation(
            suite, drawer, Judges(judge, second), CellResults(base / f"{name}.results.jsonl")
        )
        games = evaluation.run(rows, progress)
    against = None if what == "bare" else suite.ours
    report = ImageReport(games, against, len(judge.concepts), suite.parts)
    about = {
        "suite": name,
        "model": suite.model,
        "steps": suite.steps,
        "guidance": suite.guidance,
        "pictures": suite.images,
        "judge": judge.digest,
        "date": date.today().isoformat(),
        "machine": platform.machine(),
        "took_s": round(time.monotonic() - began, 1),
        "drawing_s": round(sum(r.seconds for each in games for r in each.results.values()), 1),
    }
    subtitle = (
        f"Model {suite.model}, {suite.steps} steps, guidance {suite.guidance:g}, "
        f"judged by {suite.judge.name}, {about['date']}"
    )
    tell(report, base / f"{name}.{what}", about, f"Images: {name}", subtitle, as_json)


def tell(
    report: Any, out: Path, about: dict[str, Any], title: str, subtitle: str, as_json: bool
) -> None:
    """Write a report as `out`.json and `out`.html, and print its figures."""
    from guard.reporting.page import write_text

    told = report.as_json(about)
    write_text(out.with_name(out.name + ".json"), json.dumps(told, indent=1, ensure_ascii=False))
    page = out.with_name(out.name + ".html")
    write_text(page, report.page(title, subtitle))
    if as_json:
        print(json.dumps(told, indent=2, ensure_ascii=False))
        return
    _print(report)
    Console().print(f"wrote {page}", markup=False, highlight=False, soft_wrap=True)


def chosen(given: str, known: dict[str, Any]) -> dict[str, Any]:
    """Those of `known` that an option names, with commas. Raises DataError for an unknown one."""
    names = [name.strip() for name in given.split(",")]
    if unknown := [name for name in names if name not in known]:
        raise DataError(f"no {', '.join(unknown)}: there is {', '.join(known)}")
    return {name: known[name] for name in names}


def _print(report: Any) -> None:
    table = Table("figure", "value (95 % interval)", "target", "")
    for figure in report.figures:
        reached = {True: "reached", False: "not reached", None: ""}[figure.reached]
        table.add_row(figure.name, figure.value, figure.target, reached)
    console = Console()
    console.print(table)
    if report.methods:
        grid = report.table()
        beside = Table(*grid.columns, title=grid.title)
        for row in grid.rows:
            beside.add_row(*(cell.split(" (")[0] for cell in row))
        console.print(beside)
