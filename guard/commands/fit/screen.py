"""`guard fit screen`: from labelled texts to a screen of texts."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console

from guard.commands.fit.options import AsJson, Out
from guard.commands.fit.output import (
    checked_concept,
    print_json,
    print_judgement,
    print_written,
    require_artifact_name,
)
from guard.config.policy_schema import PLACES, Place
from guard.data.prompts import ScreenText, read_rows, texts
from guard.errors import DataError, ModelError
from guard.fitting.files import write_report
from guard.models.kind_checks import source_of
from guard.reporting import values
from guard.reporting.progress import stages

if TYPE_CHECKING:
    from guard.fitting.screens.report import Fit


HeadKind = Annotated[
    Literal["logistic", "kernel", "mlp", "prototype"], typer.Option(help="What kind of head.")
]
CalibrationOption = Annotated[
    Literal["temperature", "isotonic"],
    typer.Option(help="How its logits become probabilities."),
]
FprOption = Annotated[
    float,
    typer.Option(min=1e-4, max=0.5, help="False-positive rate on each benign collection."),
]
HoldOut = Annotated[
    list[str] | None,
    typer.Option(help="A source to test on and not to train on; may be repeated."),
]
SeedOption = Annotated[int, typer.Option(min=0, help="Of the split and of the head.")]
DescriptionOption = Annotated[str, typer.Option(help="A sentence kept in the artifact.")]

_SHOWN, _WIDTH = 5, 90
"""Mistakes that are printed of each kind, the nearest to the threshold first, and their width."""


def screen(
    concept: Annotated[str, typer.Option(help="The concept of unsafe texts, as kind/name.")],
    out: Out,
    data: Annotated[
        Path | None, typer.Option(help="Texts, JSON Lines: text, unsafe, source, family.")
    ] = None,
    examples: Annotated[
        Path | None,
        typer.Option(help="In place of --data: unsafe texts, one a line; benign ones are shipped."),
    ] = None,
    benign: Annotated[
        Path | None, typer.Option(help="With --examples: further benign texts, one a line.")
    ] = None,
    model: Annotated[str, typer.Option(help="The text encoder.")] = "minilm",
    kind: HeadKind = "logistic",
    calibration: CalibrationOption = "temperature",
    fpr: FprOption = 0.01,
    hold_out: HoldOut = None,
    look: Annotated[
        list[str] | None,
        typer.Option(help="A place that it is for (user, tool, ...); all where left out."),
    ] = None,
    learn_only: Annotated[
        list[str] | None,
        typer.Option(help="A benign source to learn from and not to calibrate on."),
    ] = None,
    seed: SeedOption = 0,
    description: DescriptionOption = "",
    as_json: AsJson = False,
) -> None:
    """Fit a screen of texts: a head on a sentence encoder, calibrated, with its threshold."""
    require_artifact_name(out)
    checked_concept(concept, description)
    places = _places(look or PLACES)
    rows = _rows(data, examples, benign)
    source = source_of(model, "text")

    from classifiers.text.disguises.views import readings
    from classifiers.text.encoder.model import TextEncoder
    from guard.fitting.screens.examples import with_near_misses
    from guard.fitting.screens.fit import READING, ScreenRecipe, fit_screen, require_texts
    from guard.fitting.screens.report import as_json as report_json
    from guard.fitting.screens.report import as_page
    from guard.fitting.screens.windows import embed_windows

    recipe = ScreenRecipe(
        kind=kind,
        calibration=calibration,
        fpr=fpr,
        seed=seed,
        learn_only=tuple(learn_only or ()),
        look=places,
    )
    require_texts(rows, hold_out or [], recipe)
    started = time.monotonic()
    try:
        encoder = TextEncoder.load(source)
    except ValueError as error:
        raise ModelError(str(error)) from error
    with stages() as progress:
        windows = None
        if examples is not None:
            windows = embed_windows(encoder, texts(rows), readings, progress, READING)
            rows, windows = with_near_misses(rows, windows)
        fit = fit_screen(
            encoder,
            rows,
            concept,
            hold_out or [],
            recipe,
            readings,
            progress,
            description,
            windows,
        )
    report = report_json(fit, time.monotonic() - started)
    finish(fit, report, as_page(fit), out, as_json=as_json)


def finish(
    fit: Fit, report: Mapping[str, Any], page_text: str, out: Path, *, as_json: bool
) -> None:
    """Write a screen's artifact and its report, and print the figures."""
    fit.artifact.save(out)
    page = write_report(out, report, page_text)
    if as_json:
        print_json(report, out, fit.artifact)
        return
    console = Console()
    figures = {key: value for key, value in report["calibration"].items() if key != "tested"}
    console.print(values.table("calibration", figures))
    if (test := fit.test) is not None:
        shares = {f"unsafe: {name}": str(share) for name, share in test.recall.items()}
        shares |= {f"benign: {name}": str(share) for name, share in test.false_positives.items()}
        console.print(values.table("held-out examples that fire", {"auc": test.auc, **shares}))
    for name, nearest in (("missed", fit.held_out.missed), ("wrongly hit", fit.held_out.hit)):
        shown = {_short(each.prompt): round(each.score, 3) for each in nearest[:_SHOWN]}
        if shown:
            console.print(values.table(f"{name}: {len(nearest)}", shown))
    print_judgement(console, report)
    print_written(console, out, page)


def _rows(data: Path | None, examples: Path | None, benign: Path | None) -> list[ScreenText]:
    """The labelled texts of the file or of the files. Raises DataError for faults in them."""
    if (data is None) == (examples is None):
        raise DataError("give labelled texts with --data, or unsafe ones alone with --examples")
    if data is not None:
        if benign is not None:
            raise DataError("--benign goes with --examples: --data has the benign texts itself")
        return read_rows(data, ScreenText)
    from guard.fitting.screens.examples import FEWEST, read_lines, rows_of

    assert examples is not None
    return rows_of(read_lines(examples, FEWEST), read_lines(benign) if benign else [])


def _places(named: Sequence[str]) -> tuple[Place, ...]:
    if unknown := [name for name in named if name not in PLACES]:
        raise DataError(f"--look: {unknown[0]!r} is no place: there are {', '.join(PLACES)}")
    return tuple(place for place in PLACES if place in named)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _WIDTH else f"{line[: _WIDTH - 3]}..."
