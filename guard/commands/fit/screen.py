"""`guard fit screen`: from labelled texts to a screen of texts."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Literal

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


def screen(
    data: Annotated[Path, typer.Option(help="Texts, JSON Lines: text, unsafe, source, family.")],
    concept: Annotated[str, typer.Option(help="The concept of unsafe texts, as kind/name.")],
    out: Out,
    model: Annotated[str, typer.Option(help="The text encoder.")] = "minilm",
    kind: Annotated[
        Literal["logistic", "mlp", "prototype"], typer.Option(help="What kind of head.")
    ] = "logistic",
    calibration: Annotated[
        Literal["temperature", "isotonic"],
        typer.Option(help="How its logits become probabilities."),
    ] = "temperature",
    fpr: Annotated[
        float,
        typer.Option(min=1e-4, max=0.5, help="False-positive rate on each benign collection."),
    ] = 0.01,
    hold_out: Annotated[
        list[str] | None,
        typer.Option(help="A source to test on and not to train on; may be repeated."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the split and of the head.")] = 0,
    description: Annotated[str, typer.Option(help="A sentence kept in the artifact.")] = "",
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
    fit.artifact.save(out)
    report = report_json(fit, time.monotonic() - started)
    page = write_report(out, report, as_page(fit))
    if as_json:
        print_json(report, out, fit.artifact)
        return
    console = Console()
    figures = {key: value for key, value in report["calibration"].items() if key != "tested"}
    console.print(values.table("calibration", figures))
    if (test := fit.test) is not None:
        shares = {f"unsafe: {name}": str(share) for name, share in test.recall.items()}
        shares |= {f"benign: {name}": str(share) for name, share in test.false_positives.items()}
        console.print(values.table("held-out texts that fire", {"auc": test.auc, **shares}))
    print_judgement(console, report)
    print_written(console, out, page)
