"""`guard fit screen`: from labelled texts to a screen of texts."""

from __future__ import annotations

import time
from collections.abc import Mapping
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
from guard.data.prompts import ScreenText, read_rows
from guard.errors import ModelError
from guard.fitting.files import write_report
from guard.models.kind_checks import source_of
from guard.reporting import values
from guard.reporting.progress import stages

if TYPE_CHECKING:
    from guard.fitting.screens.report import Fit


HeadKind = Annotated[
    Literal["logistic", "mlp", "prototype"], typer.Option(help="What kind of head.")
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


def screen(
    data: Annotated[Path, typer.Option(help="Texts, JSON Lines: text, unsafe, source, family.")],
    concept: Annotated[str, typer.Option(help="The concept of unsafe texts, as kind/name.")],
    out: Out,
    model: Annotated[str, typer.Option(help="The text encoder.")] = "minilm",
    kind: HeadKind = "logistic",
    calibration: CalibrationOption = "temperature",
    fpr: FprOption = 0.01,
    hold_out: HoldOut = None,
    seed: SeedOption = 0,
    description: DescriptionOption = "",
    as_json: AsJson = False,
) -> None:
    """Fit a screen of texts: a head on a sentence encoder, calibrated, with its threshold."""
    require_artifact_name(out)
    checked_concept(concept, description)
    rows = read_rows(data, ScreenText)
    source = source_of(model, "text")

    from classifiers.text.disguises.views import readings
    from classifiers.text.encoder.model import TextEncoder
    from guard.fitting.screens.fit import ScreenRecipe, fit_screen, require_texts
    from guard.fitting.screens.report import as_json as report_json
    from guard.fitting.screens.report import as_page

    recipe = ScreenRecipe(kind=kind, calibration=calibration, fpr=fpr, seed=seed)
    require_texts(rows, hold_out or [], recipe)
    started = time.monotonic()
    try:
        encoder = TextEncoder.load(source)
    except ValueError as error:
        raise ModelError(str(error)) from error
    with stages() as progress:
        fit = fit_screen(
            encoder,
            rows,
            concept,
            hold_out or [],
            recipe,
            readings,
            progress,
            description,
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
    print_judgement(console, report)
    print_written(console, out, page)
